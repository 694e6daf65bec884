"""Reports in Chromium: nothing overflows, nothing is loaded, and axe-core has no complaint."""

import pytest

from helpers.browser import MISSING, REASON, run_in_browser
from helpers.reported_runs import write_run
from pipelines.html_report.write import write_comparison, write_report
from pipelines.results.files import read_manifest, write_manifest

pytestmark = pytest.mark.skipif(bool(MISSING), reason=REASON)
LONG = "</script><img src=x onerror=alert(1)> \u202eשלום 👍🏽 " + "unbroken" * 2000


def views_of(page, screenshots=None):
    """Return what Chromium finds in a page, at two widths in light and dark."""
    return run_in_browser("check_page.mjs", page, *([screenshots] if screenshots else []))


@pytest.mark.parametrize(
    ("kind", "texts"),
    [("run", "text of a row"), ("run", LONG), ("comparison", LONG)],
    ids=["run", "hostile run", "hostile comparison"],
)
def test_a_page_is_clean_on_a_phone_and_wide_in_light_and_dark(kind, texts, tmp_path):
    folders = [write_run(tmp_path / name, texts=texts) for name in ("a", "b" * 60)]
    page = write_report(folders[0])
    if kind == "comparison":
        page = write_comparison(list(map(str, folders)), tmp_path / "c.html")
    views = views_of(page, tmp_path)
    assert [view["violations"] for view in views] == [[]] * 4
    assert [view["overflow"] for view in views] == [0] * 4
    assert [view["errors"] for view in views] == [[]] * 4
    assert [view["requests"] for view in views] == [[page.as_uri()]] * 4
    light, dark = (
        {view["background"] for view in views[::2]},
        {v["background"] for v in views[1::2]},
    )
    assert len(light) == len(dark) == 1
    assert light != dark
    for rule in ("color-contrast", "svg-img-alt", "heading-order", "scrollable-region-focusable"):
        assert rule in views[0]["passes"]
    for view in views:
        file = tmp_path / f"{view['width']}-{view['colorScheme']}.png"
        assert file.stat().st_size > 20_000


def test_a_matrix_of_eight_labels_is_seen_as_a_whole_on_a_wide_page(tmp_path):
    folder = write_run(tmp_path / "a")
    labels = [f"complaint{number}" for number in range(8)]
    sidecar = read_manifest(folder)
    matrix = [[5 * (row == column) for column in range(8)] for row in range(8)]
    scores = {
        f"{name}_per_class": dict.fromkeys(labels, 1.0) for name in ("f1", "precision", "recall")
    }
    scores |= {"confusion_matrix": matrix, "support_per_class": dict.fromkeys(labels, 5)}
    write_manifest(folder, sidecar | {"labels": labels, "metrics": sidecar["metrics"] | scores})
    views = views_of(write_report(folder))
    seen = {view["width"]: "Confusion matrix" not in view["scrolled"] for view in views}
    assert seen == {360: False, 1280: True}


def test_the_check_finds_what_it_looks_for(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<title>Broken</title><style>p {color: #ccc; background: #fff; width: 2000px}</style>"
        "<p>pale</p><svg role=img></svg><img src=missing.png onerror='alert(1)'>"
    )
    views = views_of(page)
    for view in views:
        rules = {text.split(":")[0] for text in view["violations"]}
        assert {"color-contrast", "html-has-lang", "image-alt", "svg-img-alt"} <= rules
        assert view["overflow"] > 700
        assert "dialog: 1" in view["errors"]
        assert len(view["requests"]) == 2
