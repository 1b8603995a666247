"""The evaluations of a report, sorted: groups whose figures can be compared, and the methods of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .errors import InvalidInput
from .page import plan_name
from .report_files import Bench, Eval, Row


@dataclass(frozen=True)
class Method:
    """One line of every plot: the rows of one subject, by steps, from one file or several."""

    files: tuple[Eval, ...]
    rows: tuple[Row, ...]
    index: int  # of its colour

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def machine(self) -> str:
        return machine_of(self.files[0])

    @property
    def best(self) -> Row:
        return min(self.rows, key=lambda row: row.frechet.value)

    def seeds(self, row: Row) -> int:
        return next(len(one.seeds) for one in self.files if row in one.rows)

    def called(self, row: Row) -> str:
        return plan_name(self.name, row.steps) + (f", {row.grid_name} grid" if row.grid_name else "")


@dataclass(frozen=True)
class Group:
    """Methods whose figures have the same data, extractor, reference and number of pictures."""

    methods: tuple[Method, ...]

    @property
    def about(self) -> Eval:
        return self.methods[0].files[0]

    @property
    def files(self) -> list[Eval]:
        return [one for method in self.methods for one in method.files]

    @property
    def title(self) -> str:
        return f"{self.about.data}: {self.about.features}, {self.about.num_samples:,} pictures"

    @property
    def plans(self) -> list[tuple[Method, Row]]:
        return [(method, row) for method in self.methods for row in method.rows]

    @cached_property
    def longest(self) -> tuple[Method, Row]:
        """The plan of most steps, of these the slowest: what the others are compared with."""
        return max(self.plans, key=lambda plan: (plan[1].steps, plan[1].ms_per_image))

    def factor(self, method: Method, row: Row) -> float | None:
        """How many times faster than the longest plan; None on another machine."""
        other, longest = self.longest
        return longest.ms_per_image / row.ms_per_image if method.machine == other.machine else None

    @property
    def machines(self) -> list[str]:
        return list(dict.fromkeys(method.machine for method in self.methods))


def machine_of(one: Eval | Bench) -> str:
    """What has to be equal for times to stand on one axis."""
    threads, facts = one.facts.get("threads") or one.facts.get("cores", "an unknown number of"), one.facts
    device = facts.get("device", "cpu")
    return f"{facts.get('processor', 'an unknown processor')}, {threads} thread{'s' * (threads != 1)}, {device}"


def groups(evals: Sequence[Eval]) -> list[Group]:
    """In the order of the files; two files that claim the same line are refused."""
    found = []
    for setting in dict.fromkeys(one.setting for one in evals):
        own = [one for one in evals if one.setting == setting]
        methods = []
        for index, name in enumerate(dict.fromkeys(one.name for one in own)):
            files = tuple(one for one in own if one.name == name)
            _refuse_strangers(files)
            rows = sorted((row for one in files for row in one.rows), key=lambda row: row.plan)
            methods.append(Method(files, tuple(rows), index))
        found.append(Group(tuple(methods)))
    return found


def _refuse_strangers(files: Sequence[Eval]) -> None:
    """Files of one name: rows of the same subject in the same setting, none of them twice."""
    first, seen = files[0], {row.plan: files[0] for row in files[0].rows}
    for other in files[1:]:
        for field in ("method", "subject", "guidance", "solver"):
            came, expected = getattr(other, field), getattr(first, field)
            if came != expected:
                raise InvalidInput(
                    f"{first.path} and {other.path} are both named {first.name!r}, but their {field} differs "
                    f"({expected} and {came}); expected one method a name: give one of them another --name"
                )
        if machine_of(other) != machine_of(first):
            raise InvalidInput(
                f"{first.path} and {other.path} are both named {first.name!r}, but were timed on {machine_of(first)} "
                f"and on {machine_of(other)}; expected one machine a name: evaluate one of them with another --name"
            )
        for row in other.rows:
            if row.plan in seen:
                raise InvalidInput(
                    f"{seen[row.plan].path} and {other.path} both hold {plan_name(first.name, row.steps)}; expected "
                    "it once: leave one file away, or give one another --name"
                )
            seen[row.plan] = other
