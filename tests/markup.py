"""A page as a browser would take it: tags that match, pictures inside, nothing from elsewhere."""

import base64
import html
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

VOID = {"meta", "img", "br", "link", "input"}
LOADS = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}  # attributes that make a browser fetch
HARMLESS = {"html", "head", "body", "title", "style", "h1", "h2", "h3", "p", "ul", "ol", "li", "i", "strong", "small"}
HARMLESS |= {"dl", "dt", "dd", "div", "figure", "figcaption", "details", "summary", "svg", "path", "text", *VOID}
HARMLESS |= {"table", "thead", "tbody", "tr", "th", "td"}


@dataclass
class Page(HTMLParser):
    source: str
    open: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)  # the text of each kind of element
    pictures: list[Image.Image] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        assert self.source.startswith("<!doctype html>")
        self.feed(self.source)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        assert not re.search(r"url\(|@import|https?://", self.source), "something is fetched from elsewhere"

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        assert len(named) == len(attributes), f"{tag} has an attribute twice: {attributes}"
        assert tag in HARMLESS, f"<{tag}> came out of a text"
        assert not [name for name in named if name.startswith("on")], f"{tag} runs a script: {attributes}"
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.words.setdefault(tag, []).append("")
        for name in LOADS & set(named):
            kind, _, content = named[name].partition(",")
            assert kind == "data:image/png;base64", f"{tag} loads {named[name][:60]}"
            picture = Image.open(BytesIO(base64.b64decode(content, validate=True)))
            picture.load()
            self.pictures.append(picture)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes {self.open[-1:]}"

    def handle_data(self, data):
        for tag in set(self.open):
            self.words[tag][-1] += data

    @property
    def lines(self) -> list[list[str]]:
        """The tables' lines, cell by cell."""
        lines = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line) for line in re.findall(r"<tr>(.*?)</tr>", self.source)]
        return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in line] for line in lines]
