"""The kernel analysis on paper: its table by value, what its figures draw, and that the page is whole and harmless."""

import io
import json
import os
import re
import subprocess

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from bsconv_nas.errors import RecordError
from bsconv_nas.network.analysis import LayerKernels, LeftOut
from bsconv_nas.report import document, kernels_page
from bsconv_nas.report.kernels import correlation_figure, energy_figure, kernels_info, omission, sentences, share

NAN = float("nan")
HOSTILE = "</script><script>document.title='x'</script><img src=x onerror=document.title='x'>"
CHROMIUM = ("/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
CHROMIUM += ("--virtual-time-budget=8000", "--window-size=500,900")
PROBE = """
<script>
addEventListener("load", () => {
  document.body.dataset.over = Math.max(0, document.documentElement.scrollWidth - innerWidth);
});
</script>
"""


def layer(path: str, intra: tuple[float, ...], cross: tuple[float, ...], kept: float = 0.5, **changes) -> LayerKernels:
    energy = {"regular": 1.0, "dsc": kept - 0.1, "bsconv_u": kept}
    null = {"regular": 1.0, "dsc": 0.2, "bsconv_u": 0.25}
    values = {"intra_null": 0.3, "cross_null": 0.2, "energy": energy, "energy_null": null, **changes}
    return LayerKernels(path, len(cross), len(intra), (3, 3), (2, 1), intra=intra, cross=cross, **values)


LAYERS = (
    layer("stem", (NAN, NAN, NAN, NAN), (0.5,), 0.9, intra_null=NAN),
    layer("layer1.conv", (0.4, 0.5, 0.6, 0.9), (0.2, NAN, 0.4)),
    layer("layer2.conv", (0.3, 0.4), (0.6, 0.8), 0.7),
)
OTHERS = (
    LeftOut("layer1.down", 4, 8, (1, 1), (2, 2), "1x1"),
    LeftOut("layer2.dw", 8, 8, (5, 5), (1, 1), "depthwise"),
    LeftOut("layer2.pw", 8, 4, (1, 1), (1, 1), "1x1"),
)


def test_the_table_holds_every_number():
    rows = kernels_info(LAYERS).rows
    assert rows["layer"].tolist() == ["stem", "layer1.conv", "layer2.conv"]
    assert rows[["c_in", "c_out", "kernel", "stride"]].iloc[1].tolist() == [3, 4, "3x3", "2x1"]
    assert rows["intra_mean"].tolist() == pytest.approx([NAN, 0.6, 0.35], nan_ok=True)
    assert rows["intra_null"].tolist() == pytest.approx([NAN, 0.3, 0.3], nan_ok=True)
    assert rows["cross_mean"].tolist() == pytest.approx([0.5, 0.3, 0.7])  # the channel without a score counts in none
    assert rows["cross_null"].tolist() == pytest.approx([0.2] * 3)
    found = [rows[f"intra_{name}"].iloc[1] for name in ("p5", "q1", "median", "q3", "p95")]
    assert found == pytest.approx(np.percentile([0.4, 0.5, 0.6, 0.9], [5, 25, 50, 75, 95]))
    assert rows["energy[dsc]"].tolist() == pytest.approx([0.8, 0.4, 0.6])
    assert rows["energy_null[bsconv_u]"].tolist() == pytest.approx([0.25] * 3)


def test_the_table_holds_what_is_left_out_below_the_others():
    info = kernels_info(LAYERS, OTHERS)
    assert info.rows.equals(kernels_info(LAYERS).rows)
    assert info.table["layer"].tolist() == [
        "stem",
        "layer1.conv",
        "layer2.conv",
        "layer1.down",
        "layer2.dw",
        "layer2.pw",
    ]
    assert info.table["left_out"].tolist() == ["", "", "", "1x1", "depthwise", "1x1"]
    assert info.table.loc[4, ["c_in", "c_out", "kernel", "stride"]].tolist() == [8, 8, "5x5", "1x1"]
    assert info.table.loc[3:, "intra_mean":"energy_null[bsconv_u]"].isna().all(axis=None)
    assert info.table["c_in"].dtype == np.int64


def test_the_words_say_what_is_left_out_and_why():
    assert omission(OTHERS) == (
        "Left out: 2 1x1 and 1 depthwise convolutions, as a 1x1 kernel has no shape that another could share, and a "
        "depthwise filter has but one slice."
    )
    grouped = LeftOut("g", 8, 8, (3, 3), (1, 1), "grouped")
    assert omission([grouped]).startswith("Left out: 1 grouped convolution, as a grouped filter has slices for ")
    lines = [LeftOut("a", 8, 8, (3,), (1,), "1-D"), LeftOut("b", 8, 8, (3,) * 3, (1,) * 3, "3-D"), grouped]
    assert omission(lines).startswith("Left out: 1 grouped, 1 1-D and 1 3-D convolutions, as ")
    assert omission(lines).count("only 2-D kernels are compared") == 1
    assert omission([]) == ""


def test_the_words_say_which_correlation_is_stronger():
    first, second = sentences(kernels_info([*LAYERS, layer("last", (0.5, 0.7), (0.1,))]))
    assert first.startswith(
        f"The first template explains {share((0.6 + 0.35 + 0.6) / 3)} of the variance within a filter, where"
    )
    assert f"{share((0.5 + 0.3 + 0.7 + 0.1) / 4)} across filters, where they reach {share(0.2)}" in first
    assert second.endswith("the stronger one in 2 of 3 layers.")  # the stem has but one channel


def test_the_words_say_when_nothing_was_learned():
    fresh = (layer("a", (0.29, 0.31), (0.19, 0.21)), layer("b", (0.3,), (0.2,)))
    assert sentences(kernels_info(fresh))[1].startswith("Both stand at the null level")
    assert "null level: these" not in sentences(kernels_info([layer("a", (0.29, 0.31), (0.5, 0.6))]))[1]
    assert "null level: these" not in sentences(kernels_info([layer("a", (0.6, 0.7), (0.19, 0.21))]))[1]


def test_shares_that_are_undefined_are_a_dash():
    assert (share(0.4621), share(NAN)) == ("46.2\N{NO-BREAK SPACE}%", "\N{EN DASH}")


def test_the_boxes_stand_beside_their_null_level():
    figure = correlation_figure(kernels_info(LAYERS))
    intra, intra_null, cross, cross_null = figure.data
    assert (intra.type, cross.type) == ("box", "box")
    assert list(intra.x) == [1, 2]  # the stem has no score
    assert list(intra.median) == pytest.approx([0.55, 0.35])
    assert cross.upperfence[0] == pytest.approx(0.5)
    assert list(intra_null.y[1:]) == pytest.approx([0.3, 0.3])
    assert list(cross_null.y) == pytest.approx([0.2, 0.2, 0.2])
    assert figure.layout.xaxis2.ticktext == ("stem", "layer1.conv", "layer2.conv")


def test_the_heat_map_has_a_row_for_each_option_but_regular():
    (heat,) = energy_figure(kernels_info(LAYERS)).data
    assert list(heat.y) == ["dsc", "bsconv_u"]
    np.testing.assert_allclose(np.array(heat.z, dtype=float), [[0.8, 0.4, 0.6], [0.9, 0.5, 0.7]])
    assert [list(row) for row in heat.text] == [["80", "40", "60"], ["90", "50", "70"]]
    assert energy_figure(kernels_info([layer(f"l{i}", (0.4,), (0.4,)) for i in range(30)])).data[0].text is None


def test_a_space_of_regular_convolutions_has_a_figure_too():
    only = layer("a", (0.4,), (0.4,), energy={"regular": 1.0}, energy_null={"regular": 1.0})
    assert list(energy_figure(kernels_info([only])).data[0].y) == ["regular"]


def test_page_and_table_are_written_together(tmp_path):
    page, table = kernels_page.write(LAYERS, "ResNet", "r.pth", tmp_path / "a.html", tmp_path / "b.csv", OTHERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.csv"]
    text = page.read_text()
    assert text.count(get_plotlyjs()) == 1
    rest = text.replace(get_plotlyjs(), "")
    assert {"figure-correlation", "figure-energy"} <= set(re.findall(r'id="([\w-]+)"', rest))
    assert "with the weights of r.pth" in rest
    assert "No weights were given" not in rest
    assert f">{share(0.6)}<" in rest
    assert not re.search(r'src=|href="[^#]|url\(|@import', rest)
    read = pd.read_csv(io.StringIO(table.read_text()))
    read["left_out"] = read["left_out"].fillna("")
    pd.testing.assert_frame_equal(read, kernels_info(LAYERS, OTHERS).table, rtol=1e-5, check_dtype=False)
    assert f"<p>{omission(OTHERS)}</p>" in rest
    assert "names the layers that are left out" in rest
    assert "left out" not in kernels_page.render(LAYERS, "ResNet", "r.pth").replace(get_plotlyjs(), "")


def test_the_page_says_where_there_are_no_weights():
    assert "No weights were given, so this is the network as a:b makes it." in kernels_page.render(LAYERS, "a:b", "")


def test_text_from_outside_stays_text():
    hostile = kernels_page.render([layer(HOSTILE, (0.4, 0.5), (0.3,))], HOSTILE, HOSTILE)
    assert HOSTILE not in hostile
    assert "<img" not in hostile.replace(get_plotlyjs(), "")
    info = kernels_info([layer(HOSTILE, (0.4, 0.5), (0.3,))])
    for figure in (correlation_figure(info), energy_figure(info)):  # Plotly reads HTML in labels
        assert "<script" not in str(json.loads(figure.to_json()))


def test_a_folder_must_be_there(tmp_path):
    with pytest.raises(RecordError, match=r"into an existing folder, but there is no '.*deep': make it"):
        document.destination(tmp_path / "deep" / "a.html")
    assert document.destination(str(tmp_path / "a.html")) == tmp_path / "a.html"


@pytest.mark.browser
def test_a_browser_draws_it_on_a_phone_and_runs_no_hostile_text(tmp_path):
    page = tmp_path / "a.html"
    text = kernels_page.render([*LAYERS, layer(HOSTILE, (0.4,), (0.3,))], "a", "b")
    page.write_text(text.replace("</body>", PROBE + "</body>"))
    env = {**os.environ, "HOME": str(tmp_path)}
    command = [*CHROMIUM, f"--user-data-dir={tmp_path}/profile", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert "<title>a · kernels · bsconv_nas</title>" in done.stdout
    assert 'data-over="0"' in done.stdout
    assert done.stdout.count('class="main-svg"') >= 2
