"""A report holds what the folders say, whole in one file, with what models wrote as text and never as markup."""

import re
import shutil
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

from moe_codegen.cli import app
from moe_codegen.errors import ConfigError, OutputError, ResultError
from moe_codegen.evaluation.comparison import compare
from moe_codegen.evaluation.held_out.measures import measure
from moe_codegen.evaluation.multipl_e import Completions, Result, folder_name, write_completions, write_results
from moe_codegen.evaluation.report import programs, write_report
from moe_codegen.evaluation.report.figures import draw_failures, draw_values
from moe_codegen.evaluation.report.page import gather
from moe_codegen.evaluation.report.programs import Failures, Line, diff
from moe_codegen.evaluation.report.runs import read_runs
from moe_codegen.evaluation.report.tables import Cell, Row, SideBySide
from moe_codegen.evaluation.run_folder import RunRecord
from moe_codegen.evaluation.scores import score_folder
from moe_codegen.evaluation.settings import MeasureSettings, ModelSettings
from moe_codegen.upcycle import upcycle
from tests.evaluation.repositories import write_repositories
from tests.tiny import save_dense

EVIL = '</code></pre><script>alert("x")</script><img src="http://example.org/x.png">```\n'
PASSES = {"dense": {"p0": 2, "p1": 0, "p2": 1}, "moe": {"p0": 2, "p1": 2, "p2": 0}}
RIGHT, WRONG = "    return a + b\n", f"    return (a - b  # {EVIL}"


def write_run(folder, name):
    """A run of three problems with two samples each, as `evaluate run` leaves it."""
    files = folder / folder_name("humaneval", "py", name, 0.2)
    files.mkdir(parents=True)
    for problem, passed in PASSES[name].items():
        texts = tuple(RIGHT if sample < passed else WRONG for sample in range(2))
        completions = Completions(
            problem, "py", "def add(a, b):\n", "assert add(1, 2) == 3\n", texts, (), 0.2, 0.95, 64
        )
        write_completions(files, completions)
        results = [
            Result(program, 0, "", "", int(sample >= passed), "OK" if sample < passed else "Exception")
            for sample, program in enumerate(completions.programs)
        ]
        write_results(files, completions, results)
    return files


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of a dense model and of its mixture: programs, held-out files and routing."""
    root = tmp_path_factory.mktemp("report")
    write_repositories(root / "data")
    save_dense(root / "dense", "gpt_bigcode")
    upcycle(root / "dense", root / "moe", num_experts=4, top_k=2)
    settings = MeasureSettings(documents=4, context=32, max_new_tokens=6, window=32)
    found = []
    for name in PASSES:
        out = root / "runs" / name
        files = write_run(out, name)
        records = measure(root / name, root / "data", out, settings, ModelSettings(device="cpu"))
        problems = {files.name: {"dataset": "humaneval", "language": "py", "count": 3, "names": list(PASSES[name])}}
        RunRecord(records["loss"]["model"], {"temperature": 0.2}, problems).write(out)
        found.append(out)
    return found


@pytest.fixture(scope="module")
def page(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(folders, out)
    return out


class Elements(HTMLParser):
    """Tags with their attributes, and whether every one that opens is closed in its turn."""

    def __init__(self):
        super().__init__()
        self.tags, self.stack, self.headings = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in ("meta", "wbr", "link", "br", "img"):
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def elements(page):
    parser = Elements()
    parser.feed(page.read_text())
    parser.close()
    assert parser.stack == []
    return parser


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in elements(page).tags}
    assert all(
        value.startswith("#") for _, given in elements(page).tags for key, value in given.items() if key == "href"
    )
    assert "url(" not in text
    assert "@import" not in text


def test_what_a_model_wrote_is_text(page):
    text = page.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(&#34;x&#34;)" in text
    markdown = page.with_suffix(".md").read_text()
    (fence,) = {line for line in markdown.splitlines() if line.endswith("diff") and line.startswith("```")}
    assert fence == "````diff"


def test_it_can_be_read_by_ear_on_a_phone_and_in_the_dark(page):
    found = elements(page)
    assert found.headings[0] == 1
    assert found.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found.headings, found.headings[1:], strict=False))
    counts = {tag: sum(1 for each, _ in found.tags if each == tag) for tag in ("table", "caption")}
    assert counts["table"] == counts["caption"] > 5
    regions = [given for _, given in found.tags if given.get("role") == "region"]
    assert all(given["aria-label"] and given["tabindex"] == "0" for given in regions)
    text = page.read_text()
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    for table in re.finditer("<table", text):
        assert 'class="scroll' in text[: table.start()].rsplit("<div", 1)[1]


def test_the_numbers_are_those_of_the_verbs(folders):
    content = gather(folders)
    table = next(table for table in content.tables if table.title == "pass@k")
    scores = [score_folder(next(folder.glob("humaneval-*"))) for folder in folders]
    comparison = compare(scores[0].tallies, scores[1].tallies)
    (row,) = table.rows
    assert [cell.value for cell in row.cells] == [each.raw[1].value for each in scores]
    assert (row.differences[0].value, row.differences[0].low) == (comparison.difference, comparison.low)
    losses = next(table for table in content.tables if table.title == "Loss, nats per token")
    assert [row.language for row in losses.rows] == ["cpp", "java", "javascript", "python", "all"]
    assert (table.percent, losses.percent) == (True, False)
    assert all(
        losses.verdict(row.differences[0]) == "equal" for row in losses.rows if row.differences[0].low is not None
    )


def test_programs_that_parse_are_counted(folders):
    table = next(table for table in gather(folders).tables if table.title == "Generated programs that parse")
    # The wrong program's parenthesis stays open; of six samples three and two are wrong.
    assert [cell.value for cell in table.rows[0].cells] == pytest.approx([3 / 6, 4 / 6])


def test_wins_and_losses_come_with_both_programs(folders, page):
    (pair,) = gather(folders).decided
    assert ([each.problem for each in pair.wins], [each.problem for each in pair.losses]) == (["p1"], ["p2"])
    (win,) = pair.wins
    assert (win.first, win.second, win.kinds) == ((0, 2), (2, 2), ("Exception", "Passed"))
    assert Line("+", "    return a + b") in win.diff
    assert "moe 2 of 2" in page.read_text()


def test_that_programs_were_left_out_is_said(folders, page, tmp_path, monkeypatch):
    said = "The clearest of each are shown."
    assert said not in page.with_suffix(".md").read_text()
    monkeypatch.setattr(programs, "SHOWN", 0)
    short, markdown, *_ = write_report(folders, tmp_path / "report.html")
    assert said in markdown.read_text()
    assert "The 0 clearest are shown." in short.read_text()


def test_languages_without_a_difference_share_one_sentence(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "twin")
    page = write_report([folders[0], tmp_path / "twin"], tmp_path / "report.html")[0].read_text()
    assert "equally often in humaneval py (dense (twin) against dense (dense))." in " ".join(page.split())
    assert "problem by problem" not in page


def test_failures_are_counted_and_passed_comes_first(folders):
    content = gather(folders)
    assert [each.counts for each in content.failures] == [{"Passed": 3, "Exception": 3}, {"Passed": 4, "Exception": 2}]
    assert content.kinds == ["Passed", "Exception"]


def test_routing_is_that_of_the_mixture_alone(folders, page):
    (routing,) = gather(folders).routing
    assert (routing.label, routing.num_experts, len(routing.layers)) == ("moe", 4, 3)
    for heat_map in routing.maps:
        for rows in heat_map.layers.values():
            assert all(sum(row) == pytest.approx(1) for row in rows)
    assert "Experts by kind of token" in page.read_text()


def test_markdown_names_pictures_that_are_there(page):
    markdown = page.with_suffix(".md").read_text()
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", markdown)
    assert len(pictures) >= 5
    for alternative, path in pictures:
        assert alternative
        assert (page.parent / path).read_bytes().startswith(b"\x89PNG")
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_a_picture_shows_every_value_that_was_measured_with_its_interval(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr(plt, "close", shown.append)
    rows = [Row("java", "", [Cell(0.5, 0.25, 1.0), None], []), Row("c", "", [Cell(0.25), Cell(0.75, 0.5, 0.8)], [])]
    draw_values(SideBySide("", "share", "", rows, percent=True), ["dense", "moe"], tmp_path / "values.png")
    (axis,) = shown[0].axes
    assert [list(container[0].get_xdata()) for container in axis.containers] == [[50, 25], [75]]
    ends = [[list(line[:, 0]) for line in container[2][0].get_segments()] for container in axis.containers]
    assert ends == [[[25, 100], [25, 25]], [[50, 80]]]


def test_a_picture_of_failures_has_their_kinds_in_the_pages_order(tmp_path, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr(plt, "close", shown.append)
    counts = ({"WrongAnswer": 2, "Timeout": 1}, {"Passed": 2, "CompileError": 1})
    draw_failures(
        [Failures("humaneval py", str(number), each) for number, each in enumerate(counts)], tmp_path / "f.png"
    )
    labels = [text.get_text() for text in shown[0].axes[0].get_legend().get_texts()]
    assert labels == ["Passed", "CompileError", "WrongAnswer", "Timeout"]


def test_every_setting_and_hash_is_told(folders, page):
    text = page.read_text()
    for run in gather(folders).runs:
        for sha256 in run.model["files"].values():
            assert sha256 in text
        assert run.measures["loss"]["documents"]["sha256"] in text
    assert "max_new_tokens" in text
    assert "reworded.count" in text
    assert "reworded.names" not in text


def test_the_verb_writes_the_same_page_again(folders, page, tmp_path):
    result = CliRunner().invoke(app, ["report", *map(str, folders), "--out", str(tmp_path / "report.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").read_bytes() == page.read_bytes()


def test_one_run_alone_is_reported_without_differences(folders, tmp_path):
    page, *_ = write_report(folders[1:], tmp_path / "one.html")
    assert "not told apart" not in page.read_text()
    assert "<h1>moe</h1>" in page.read_text()


def test_what_cannot_be_reported_is_an_error(folders, tmp_path):
    with pytest.raises(ResultError, match="holds no results"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ConfigError, match=r"\.html"):
        write_report(folders, tmp_path / "report.pdf")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is no folder that you may write to"):
        write_report(folders, tmp_path / "file" / "report.html")


def test_a_verdict_needs_an_interval_on_one_side_of_zero():
    table = SideBySide("", "", "", [Row("python", "", [], [])], percent=False, lower_is_better=True)
    verdicts = [
        table.verdict(cell)
        for cell in (Cell(-1, -2, -0.1), Cell(1, 0.1, 2), Cell(1, -1, 3), Cell(0, -1e-6, 1e-6), Cell(-1, None, None))
    ]
    assert verdicts == ["better", "worse", "open", "equal", "silent"]


def test_a_diff_puts_the_first_programs_lines_first():
    assert diff("a\nb\nc\n", "a\nx\nc") == [Line(" ", "a"), Line("-", "b"), Line("+", "x"), Line(" ", "c")]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [tmp_path / "old/moe", tmp_path / "new/moe", tmp_path / "new/copy"]
    for folder in runs:
        files = write_run(folder, "moe")
        RunRecord({"name": "moe", "files": {}}, {}, {files.name: {"names": [*PASSES["moe"]]}}).write(folder)
    labels = [run.label for run in read_runs(runs)]
    assert labels == [f"moe ({runs[0]})", f"moe ({runs[1]})", "moe (copy)"]
    with pytest.raises(ResultError, match="is given twice"):
        read_runs([runs[0], tmp_path / "new/../old/moe"])
