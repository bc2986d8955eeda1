"""The page: complete, escaped, and in need of nothing else."""

from html.parser import HTMLParser

from bpresearch.verify import Report, Row

WRONG = Row("<b>kernel</b>", (3, 4), "autodiff", 0.5, 1e-10, False, "", ((1, 2), 1.5, 0.5), "a & b")
UNDECIDED = Row("input", (), "finite differences", float("nan"), 1e-4, None)
RIGHT = Row("bias", (4,), "autodiff", 0.0, 1e-10, True)


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page(tmp_path):
    file = tmp_path / "report.html"
    Report((RIGHT, UNDECIDED, WRONG), ("layers.0",), ("a note",), ("a <hint>",)).save_html(file, "x < y")
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert not reader.open and not reader.links
    text = "".join(reader.text)
    said = ["x < y", "culprit: layers.0", "a note", "a <hint>", "<b>kernel</b>"]
    for part in (*said, "[1, 2]: 1.5, expected 0.5"):
        assert part in text
    assert text.index("Wrong (1)") < text.index("Undecided (1)") < text.index("Right (1)")
    assert "prefers-color-scheme: dark" in text
