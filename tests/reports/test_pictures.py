import base64
import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from slugbench.reports import html
from slugbench.reports._layout import style
from slugbench.reports._pictures import data_uri, grids, picture_grid
from slugbench.reports.figures import Figures
from slugbench.reports.tables import boards

from .test_pages import Reader

METHODS = ("slug", "oracle", "ga", "original", "mask")
KINDS, PROMPTS = ("target", "target", "neighbour", "unrelated"), ("neon ball", "neon ball", "ink ball", "ink box")
SEEDS = (0, 1, 0, 0)


def drawn(method, side):
    """Of each model and prompt a colour of its own."""
    return np.stack([np.full((side, side, 3), 40 * METHODS.index(method) + i, np.uint8) for i in range(len(KINDS))])


@pytest.fixture(params=[16, 64])
def shown(request, tmp_path, made):
    """Rows of one request, and its run: `ga` has no pictures, and no method of the second base model has."""
    rows = []
    (tmp_path / "arrays").mkdir()
    for base_seed in (0, 1):
        for method in METHODS:
            metrics = [{"metric": "ua", "value": 0.5, "better": "higher", "oracle_mean": 0.9, "oracle_sd": 0.01}]
            rows += made.cells("canvas", "neon", method, base_seed, metrics=metrics)
            if method != "ga" and not base_seed:
                facts = {"kind": np.array(KINDS), "prompt": np.array(PROMPTS), "seed": np.array(SEEDS)}
                facts["image"] = drawn(method, request.param)
                columns = {f"picture.{name}": column for name, column in facts.items()}
                np.savez_compressed(tmp_path / "arrays" / f"{rows[-1].cell}.npz", **columns)
    return made.table(rows), [{"suite": {"name": "quick"}, "folder": str(tmp_path)}], request.param


def test_the_original_and_an_oracle_head_a_grid_of_what_each_method_drew(shown):
    frame, runs, side = shown
    (board,) = boards(frame, runs)
    (grid,) = grids(board, runs)
    assert list(grid.rows)[:2] == ["original", "oracle"] and set(grid.rows) == {"original", "oracle", "slug", "mask"}
    assert all(np.array_equal(image, drawn(method, side)) for method, image in grid.rows.items())
    assert grid.kinds == [("target", 2), ("neighbour", 1), ("unrelated", 1)] and grid.pixels == (side == 16)
    assert grid.base_seed == 0


def test_the_page_holds_every_picture_once_with_a_text_and_loads_none(shown):
    frame, runs, side = shown
    page = html.page(frame, runs)
    reader = Reader()
    reader.feed(page)
    assert not reader.open and "script" not in reader.tags and len(reader.ids) == len(set(reader.ids))
    uris = [uri for uri in reader.loads if uri]
    assert len(uris) == 4 * 4 and all(uri.startswith("data:image/") for uri in uris)
    seen = np.asarray(Image.open(BytesIO(base64.b64decode(uris[1].partition(",")[2]))))
    assert seen.shape == (side, side, 3) and abs(int(seen[0, 0, 0]) - int(drawn("original", 1)[1, 0, 0, 0])) <= 2
    for method in ("original", "oracle", "slug", "mask"):
        for prompt, seed in zip(PROMPTS, SEEDS, strict=True):
            assert f'aria-label="{method}: {prompt}, seed {seed}"' in page
    opened = re.findall(r'popovertarget="([^"]+)"', page)
    assert len(opened) == 16 and set(opened) == set(re.findall(r'<dialog popover id="([^"]+)"', page))
    assert ('class="shots pixels"' in page) == (side == 16)


def test_there_is_no_grid_without_pictures(frame, runs, tmp_path):
    assert "popover" not in html.page(frame, runs) and "<summary>Pictures" not in html.page(frame, runs)
    elsewhere = [{**runs[0], "folder": str(tmp_path)}]
    assert all(not grids(board, elsewhere) for board in boards(frame, elsewhere))


def test_a_figure_has_a_row_a_method_and_a_column_a_prompt(shown, tmp_path):
    frame, runs, _ = shown
    (board,) = boards(frame, runs)
    with style():
        (ax,) = picture_grid(grids(board, runs)[0]).axes
    assert [t.get_text() for t in ax.get_yticklabels()][:2] == ["original", "oracle"] and len(ax.images) == 16
    assert [t.get_text() for t in ax.get_xticklabels()] == ["neon ball, 0", "neon ball, 1", "ink ball, 0", "ink box, 0"]
    written = {path.name for path in Figures()(frame, runs, tmp_path)}
    assert {"canvas-single-requests-pictures-neon.pdf", "canvas-single-requests-pictures-neon.svg"} <= written


def test_pixels_are_kept_as_they_are():
    image = np.random.default_rng(0).integers(256, size=(16, 16, 3), dtype=np.uint8)
    stored = Image.open(BytesIO(base64.b64decode(data_uri(image).partition(",")[2])))
    assert np.array_equal(np.asarray(stored), image)
