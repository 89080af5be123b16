"""Each step on pictures whose answer is known."""

import pytest
import torch

from napari_wbc.crop import CropSize
from napari_wbc.preprocess import STEPS, apply_steps, check_steps

SIZE = CropSize(24, 96)


def field(colour=(0.8, 0.7, 0.6)) -> torch.Tensor:
    """A nucleus of 6 µm in a cell of 12 µm on a tinted background, a red cell in the corner."""
    axis = (torch.arange(96) + 0.5) / 4 - 12
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    crop = torch.tensor(colour)[:, None, None].repeat(1, 96, 96)
    crop[:, radius < 6] *= 0.7
    crop[:, radius < 3] *= 0.4
    crop[:, :16, :16] *= 0.5
    return crop[None]


def run(name, crops, **parameters):
    return STEPS[name](crops, SIZE, **parameters)


@pytest.mark.parametrize("colour", [(0.8, 0.7, 0.6), (0.3, 0.5, 0.2), (1.0, 1.0, 1.0)])
def test_white_point_takes_the_lamp_out(colour):
    crops = run("white_point", field(colour))
    torch.testing.assert_close(crops[0, :, 90, 90], torch.ones(3))
    torch.testing.assert_close(crops[0, :, 48, 48], torch.full((3,), 0.28), atol=1e-4, rtol=0)


def test_dark_point_makes_faint_and_strong_stain_equal():
    crops = run("white_point", field())
    results = [run("dark_point", crops**strength) for strength in (0.5, 1.0, 1.3)]
    for result in results:
        torch.testing.assert_close(-result[0, 1, 48, 48].log(), torch.tensor(2.0), atol=0.01, rtol=0)
        torch.testing.assert_close(result, results[0], atol=1e-3, rtol=0)


def test_dark_point_has_limits():
    faint = run("white_point", field()) ** 0.01
    torch.testing.assert_close(run("dark_point", faint, high=4.0), faint**4, atol=1e-4, rtol=0)


def test_window_removes_the_neighbour_and_keeps_the_cell():
    crops = run("white_point", field())
    alone = run("window", crops, radius_um=9.0, softness_um=0.5)
    torch.testing.assert_close(alone[0, :, 5, 5], torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(alone[0, :, 48, 48], crops[0, :, 48, 48], atol=1e-4, rtol=0)
    # 9 µm from the middle, between two pixels, half of the density is left.
    full = torch.full((1, 3, 96, 96), 0.25)
    edge = -run("window", full, radius_um=9.0, softness_um=0.5)[0, 0, 48].log()[83:85].mean()
    assert edge.item() == pytest.approx(0.5 * 1.3863, abs=0.03)


def test_steps_run_in_the_cards_order_on_bytes():
    steps = [{"step": "white_point", "share": 0.1}, {"step": "scale_to_unit"}]
    out = apply_steps((field() * 255).to(torch.uint8), steps, SIZE)
    torch.testing.assert_close(out[0, :, 90, 90], torch.ones(3), atol=0.01, rtol=0)
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    "names", [("two_dyes", "window"), ("white_point", "dark_point", "window", "scale_to_unit"), ("window", "grey")]
)
def test_a_chain_that_hands_on_logarithms_gives_what_its_steps_give_one_by_one(names):
    crops = torch.cat([field(), field((0.3, 0.5, 0.2)), torch.zeros(1, 3, 96, 96)])
    before = crops.clone()
    expected = crops
    for name in names:
        expected = run(name, expected)
    torch.testing.assert_close(apply_steps(crops, [{"step": name} for name in names], SIZE), expected)
    torch.testing.assert_close(crops, before, atol=0, rtol=0)


@pytest.mark.parametrize("value", [0, 255])
def test_extreme_input_stays_finite(value):
    crops = torch.full((2, 3, 96, 96), value, dtype=torch.uint8)
    assert torch.isfinite(apply_steps(crops, [{"step": name} for name in STEPS], SIZE)).all()


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match="unknown preprocessing step 'rm'"):
        check_steps([{"step": "rm"}])
