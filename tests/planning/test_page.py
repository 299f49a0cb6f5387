"""The page of a plan: it stands alone, and draws what the tables say."""

from html.parser import HTMLParser
from pathlib import Path

from mllm_jax.cli import main

DEMO = str(Path(__file__).parents[2] / "configs/demo.yaml")


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data.strip())


def test_a_page_has_a_bar_for_all_that_holds_memory_and_loads_nothing(tmp_path, capsys):
    path = tmp_path / "made/plan.html"
    assert main(["plan", DEMO, "--topology", "h100:8", "--stage", "instruct", "--html", str(path)]) == 0
    assert f"page: {path}" in capsys.readouterr().out.replace("\n", "")
    page = Page(path.read_text())

    assert not [tag for tag, attributes in page.tags if tag in ("script", "link", "img") or "src" in attributes]
    bars = [attributes for _, attributes in page.tags if "fill" in attributes.get("class", "")]
    assert len(bars) == 5 and all(0 <= float(bar["style"].split()[1][:-1]) <= 100 for bar in bars)
    for name in ("trainable decoder", "optimizer", "batch", "tokens a day", "chip hours"):
        assert name in page.texts
