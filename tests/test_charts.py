"""Charts: what is drawn stands where its value says, inside the drawing, at a desktop's width and a phone's."""

import math
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pyflow.axes import Scale, round_numbers, spanning
from pyflow.charts import NARROW, WIDE, Chart, bars, heat_map, radar
from pyflow.drawing import COLOURS, PNG_MARGIN, PNG_SCALE, SERIES, Drawing, Shape, Words
from pyflow.errors import InvalidInput
from pyflow.plots import Axis, Line, Point, frontier_of, line_plot


def names(rng, count):
    return ["".join(rng.choice([*"abcdefgh <&>"], rng.integers(1, 12))) + str(k) for k in range(count)]


def grid(rng, rows, columns):
    return rng.uniform(0, 10 ** rng.uniform(-3, 4), (rows, columns)).tolist()


def a_plot(rng, log: bool) -> Chart:
    lines = []
    for index, name in enumerate(names(rng, rng.integers(1, 6))):
        xs, ys = np.sort(10 ** rng.uniform(-1, 3, 5)), 10 ** rng.uniform(-2, 2, 5)
        reach = rng.uniform(0, 0.9, 5) * ys
        points = [Point(x, y, y - r, y + r, str(k)) for k, (x, y, r) in enumerate(zip(xs, ys, reach))]
        lines.append(Line(name, points, index))
    axes = Axis("ms", log=log), Axis("distance", log=log)
    return line_plot("A <plot>", *axes, lines, level=("real", 0.5), frontier=True)


def bars_with_intervals(rng) -> tuple[Chart, np.ndarray]:
    """And (series, groups, (low, value, high))."""
    values = np.sort(rng.uniform(0.1, 9, (3, 6, 3)))
    called, every = names(rng, 3), [[*map(tuple, line)] for line in values[:, :, ::2].tolist()]
    series = dict(zip(called, values[:, :, 1].tolist()))
    return bars(names(rng, 6), series, "Some <bars>", "dB", reaches=dict(zip(called, every))), values


CHARTS = {
    "heat map": lambda rng: heat_map(grid(rng, 4, 7), names(rng, 4), names(rng, 7), "A <map>", "dB & more"),
    "radar": lambda rng: radar(names(rng, 7), dict(zip(names(rng, 3), grid(rng, 3, 7))), "A <radar>", "dB"),
    "bars": lambda rng: bars(names(rng, 10), dict(zip(names(rng, 4), grid(rng, 4, 10))), "Some <bars>", "dB"),
    "bars with intervals": lambda rng: bars_with_intervals(rng)[0],
    "plot": lambda rng: a_plot(rng, log=False),
    "logarithmic plot": lambda rng: a_plot(rng, log=True),
}


@pytest.fixture(params=CHARTS.values(), ids=CHARTS.keys())
def chart(request, rng) -> Chart:
    return request.param(rng)


def shapes(drawing: Drawing, **style) -> list[Shape]:
    found = [mark for mark in drawing.marks if isinstance(mark, Shape)]
    return [mark for mark in found if all(getattr(mark, name) == value for name, value in style.items())]


def words(drawing: Drawing) -> list[Words]:
    return [mark for mark in drawing.marks if isinstance(mark, Words)]


@pytest.fixture
def long_names(monkeypatch, rng):
    """Names of methods and classes as nobody should give them."""
    monkeypatch.setitem(globals(), "names", lambda rng, count: ["W" * int(rng.integers(60, 99)) for _ in range(count)])


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_long_names_are_cut(long_names, rng, width):
    for make in CHARTS.values():
        test_nothing_lies_outside_the_drawing(make(rng), width)


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_lies_outside_the_drawing(chart, width):
    drawing = chart.draw(width)
    assert drawing.width <= width
    for mark in drawing.marks:
        corners = [mark.box[:2], mark.box[2:]] if isinstance(mark, Words) and not mark.angle else []
        for x, y in [*corners, *(mark.points if isinstance(mark, Shape) else [])]:
            assert -1 <= x <= drawing.width + 12, (x, drawing.width, mark)
            assert -1 <= y <= drawing.height + 1, (y, drawing.height, mark)


def test_svg_is_xml_whose_texts_are_the_drawings(chart):
    page = chart.svg()
    wide, narrow = ElementTree.fromstring(f"<page>{page}</page>")
    for element, drawing in ((wide, chart.draw(WIDE)), (narrow, chart.draw(NARROW))):
        assert element.attrib["aria-label"] == chart.title
        assert [text.text for text in element.iter("text")] == [mark.text for mark in words(drawing)]
        assert len([*element.iter("path")]) == len(shapes(drawing))
        colours = [part for text in element.iter() for part in text.attrib.get("style", "").split("var(--")[1:]]
        assert {colour.partition(")")[0] for colour in colours} <= set(COLOURS)


def test_png_is_the_wide_drawing(chart):
    picture, drawing = Image.open(BytesIO(chart.png())), chart.draw(WIDE)
    expected = [PNG_SCALE * (side + 2 * PNG_MARGIN) for side in (drawing.width, drawing.height)]
    assert picture.size == pytest.approx(expected, abs=2)
    pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 1
    assert (pixels[:8] == 255).all(), "the margin is paper"


def test_a_heat_map_is_deeper_where_it_is_larger(rng):
    rows, columns, values = names(rng, 5), names(rng, 4), rng.standard_normal((5, 4))
    cells = shapes(heat_map(values.tolist(), rows, columns, "map", "dB").draw(WIDE), fill="deep")
    told = [
        f"{row}, {column}: {value:.4g} dB" for row, line in zip(rows, values) for column, value in zip(columns, line)
    ]
    assert [cell.told for cell in cells] == told
    order = np.argsort(values.ravel())
    depths = np.array([cell.opacity for cell in cells])[order]
    assert (np.diff(depths) > 0).all()
    assert 0 < depths[0] < 0.1
    assert depths[-1] == 1


def test_a_radar_is_as_far_out_as_its_value(rng):
    values = rng.uniform(0.1, 1, 6)
    drawing = radar(names(rng, 6), {"one": values.tolist()}, "radar").draw(WIDE)
    (line,) = shapes(drawing, fill="blue", width=2.2, closed=True)
    rings = shapes(drawing, stroke="rule", closed=True)
    middle = np.mean(rings[-1].points, axis=0)
    out = np.linalg.norm(np.array(line.points) - middle, axis=1)
    assert out / out[0] == pytest.approx(values / values[0])
    assert np.linalg.norm(np.array(rings[-1].points) - middle, axis=1).min() >= out.max() - 1e-6
    angles = np.unwrap([math.atan2(x - middle[0], middle[1] - y) for x, y in line.points])
    assert np.diff(angles) == pytest.approx([math.tau / 6] * 5)


def test_a_bar_is_as_high_as_its_value(rng):
    values = rng.uniform(0.5, 9, (2, 5))
    told = {"one": [*values[0, :4], None], "two": [*values[1]]}
    drawing = bars(names(rng, 5), told, "bars", "dB", palette=[3, 3]).draw(WIDE)
    found = [shape for shape in shapes(drawing, fill="pink") if shape.told]
    heights = [shape.points[2][1] - shape.points[0][1] for shape in found]
    expected = [value for pair in zip(*told.values()) for value in pair if value is not None]
    assert np.array(heights) / heights[0] == pytest.approx(np.array(expected) / expected[0])
    assert {shape.opacity for shape in found} == {1.0, 0.45}, "one colour twice: the second is lighter"


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_bar_carries_its_interval(rng, width):
    """In its middle, from low to high on the scale of the bars; told in words too."""
    chart, values = bars_with_intervals(rng)
    drawing = chart.draw(width)
    bodies = [mark for mark in shapes(drawing) if mark.told]
    stems = [mark for mark in shapes(drawing, stroke="ink") if mark.points[0][0] == mark.points[1][0]]
    told = values.transpose(1, 0, 2).reshape(-1, 3)
    assert len(bodies) == len(stems) == len(told)
    pixels = [body.points[2][1] - body.points[0][1] for body in bodies]
    scale = pixels[0] / told[0, 1]
    for body, stem, (low, value, high) in zip(bodies, stems, told):
        (left, _), (right, bottom) = body.points[0], body.points[2]
        assert stem.points[0][0] == pytest.approx((left + right) / 2)
        assert [bottom - y for _, y in stem.points] == pytest.approx([low * scale, high * scale])
        assert body.told.endswith(f": {value:.4g} ({low:.4g} to {high:.4g})")


def test_a_plot_puts_points_where_both_axes_say(rng):
    xs, ys = np.sort(10 ** rng.uniform(-2, 3, 6)), 10 ** rng.uniform(-3, 1, 6)
    points = [Point(x, y) for x, y in zip(xs, ys)]
    drawing = line_plot("plot", Axis("x", log=True), Axis("y", log=True), [Line("one", points, 0)]).draw(WIDE)
    (line,) = shapes(drawing, stroke="blue", width=2.0)
    for values, places in ((np.log(xs), [x for x, _ in line.points]), (-np.log(ys), [y for _, y in line.points])):
        slope = (places[-1] - places[0]) / (values[-1] - values[0])
        assert slope > 0
        assert np.array(places) == pytest.approx(places[0] + slope * (values - values[0]), abs=1e-6)


def test_labels_hide_neither_each_other_nor_points_where_there_is_room(rng):
    points = [Point(10.0**k, 10 ** rng.uniform(0, 3), label=str(k)) for k in range(6)]
    drawing = line_plot("plot", Axis("x", log=True), Axis("y", log=True), [Line("one", points, 0)]).draw(WIDE)
    boxes = [mark.box for mark in words(drawing) if mark.bold and mark.colour == "blue"]
    (line,) = shapes(drawing, stroke="blue", width=2.0)
    assert len(boxes) == len(points)
    for at, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:at]:
            assert right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3], (boxes[at], other)
        for x, y in line.points:
            assert not (left < x < right and top < y < bottom)


def test_the_frontier_is_what_nothing_beats(rng):
    points = [tuple(point) for point in rng.integers(0, 12, (30, 2)).astype(float).tolist()]
    unbeaten = {(x, y) for x, y in points if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)}
    assert frontier_of(points) == sorted(unbeaten)


def test_scales_and_ticks(rng):
    for _ in range(200):
        log = bool(rng.integers(2))
        low, high = np.sort(10 ** rng.uniform(-6, 6, 2) if log else rng.standard_normal(2) * 10 ** rng.uniform(-5, 5))
        scale = Scale(low, high, 100, 20, log=log)
        assert scale.at(low) == pytest.approx(100)
        assert scale.at(high) == pytest.approx(20)
        ticks = scale.ticks()
        assert 1 <= len(ticks) <= 8
        slack = 1e-9 * (abs(low) + abs(high))
        assert all(low - slack <= tick <= high + slack for tick in ticks)
        assert ticks == sorted(set(ticks))
        steps = np.diff(round_numbers(low, high, 7))
        assert steps == pytest.approx([steps[0]] * len(steps))
        around = spanning([low, high], 0, 1, log=log)
        assert around.low <= low <= high <= around.high


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("at", [0, 1], ids=["day", "night"])
def test_colours_are_seen_on_their_paper(at):
    """WCAG's contrast: 3 for graphics, 4.5 for text."""
    for name in (*SERIES, "deep", "ink", "soft"):
        dark, light = sorted(luminance(COLOURS[one][at]) for one in (name, "paper"))
        assert (light + 0.05) / (dark + 0.05) >= (4.5 if name in ("ink", "soft") else 3), name


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: heat_map([[1.0, math.nan]], ["a"], ["b", "c"], "map", ""), "map holds nan; expected finite numbers"),
        (lambda: heat_map([[1.0]], ["a"], ["b", "c"], "map", ""), r"map has lines of \[1\] values; expected 1 of 2"),
        (lambda: heat_map([], [], ["b"], "map", ""), "one or more of each"),
        (lambda: radar(["a", "b"], {"x": [1, 2]}, "radar"), "radar has 2 axes; expected three or more"),
        (lambda: radar(["a", "b", "c"], {"x": [1, 2, -0.5]}, "radar"), "radar holds -0.5; expected values of zero or"),
        (lambda: bars(["a"], {"x": [math.inf]}, "bars", ""), "bars holds inf"),
        (lambda: bars(["a"], {"x": [None]}, "bars", ""), "bars has no values"),
        (lambda: bars(["a"], {"x": [1.0]}, "bars", "", reaches={"x": [(0.0, math.nan)]}), "bars holds nan"),
        (lambda: bars(["a"], {"x": [1.0]}, "bars", "", reaches={"x": []}), r"bars has lines of \[0\] values"),
        (lambda: line_plot("plot", Axis("x"), Axis("y"), [Line("a", [], 0)]), "plot has no points"),
        (lambda: spanning([0.0, 1.0], 0, 1, log=True), "a logarithmic axis was given 0.0; expected values above 0"),
        (lambda: Scale(1, 1, 0, 1), "an axis goes from 1 to 1"),
    ],
)
def test_what_can_not_be_drawn_is_refused(make, sentence):
    with pytest.raises(InvalidInput, match=sentence):
        make()
