"""Each step on pictures whose answer is known."""

import pytest
import torch

from napari_wbc.crop import CropSize
from napari_wbc.preprocess import STEPS, apply_steps, check_steps

SIZE = CropSize(24, 96)


def field(colour=(0.8, 0.7, 0.6)) -> tuple[torch.Tensor, torch.Tensor]:
    """A nucleus of 6 µm in a cell of 12 µm on a tinted background, a red cell in the corner, and the cell's mask."""
    axis = (torch.arange(96) + 0.5) / 4 - 12
    radius = (axis[:, None] ** 2 + axis[None] ** 2).sqrt()
    crop = torch.tensor(colour)[:, None, None].repeat(1, 96, 96)
    crop[:, radius < 6] *= 0.7
    crop[:, radius < 3] *= 0.4
    crop[:, :16, :16] *= 0.5
    return crop[None], (radius < 6).float()[None, None]


def run(name, crops, masks, **parameters):
    return STEPS[name](crops, masks, SIZE, **parameters)


@pytest.mark.parametrize("colour", [(0.8, 0.7, 0.6), (0.3, 0.5, 0.2), (1.0, 1.0, 1.0)])
def test_white_point_takes_the_lamp_out(colour):
    crops, _ = run("white_point", *field(colour))
    torch.testing.assert_close(crops[0, :, 90, 90], torch.ones(3))
    torch.testing.assert_close(crops[0, :, 48, 48], torch.full((3,), 0.28), atol=1e-4, rtol=0)


def test_dark_point_makes_faint_and_strong_stain_equal():
    crops, masks = run("white_point", *field())
    results = [run("dark_point", crops**strength, masks)[0] for strength in (0.5, 1.0, 1.3)]
    for result in results:
        torch.testing.assert_close(-result[0, 1, 48, 48].log(), torch.tensor(2.0), atol=0.01, rtol=0)
        torch.testing.assert_close(result, results[0], atol=1e-3, rtol=0)


def test_dark_point_has_limits():
    crops, masks = run("white_point", *field())
    faint = crops**0.01
    result, _ = run("dark_point", faint, masks, high=4.0)
    torch.testing.assert_close(result, faint**4, atol=1e-4, rtol=0)


def test_cell_mask_is_wider_by_its_margin_and_soft():
    _, mask = run("cell_mask", *field(), margin_um=1.0)
    profile = mask[0, 0, 48]
    assert profile[48] == 1
    inside = (profile > 0.5).sum().item()
    # 12 µm and 1 µm on each side, four pixels a µm.
    assert inside == pytest.approx(56, abs=1)
    assert ((profile > 0) & (profile < 1)).sum() > 2


def test_an_unknown_outline_becomes_a_disc():
    crops, masks = field()
    _, disc = run("cell_mask", crops, torch.zeros_like(masks), radius_um=8.0)
    area = disc.sum().item() / 16
    assert area == pytest.approx(3.1416 * 64, rel=0.02)


def test_isolate_removes_the_neighbour_and_keeps_the_cell():
    crops, masks = run("white_point", *field())
    alone, _ = run("isolate", crops, masks)
    torch.testing.assert_close(alone[0, :, 5, 5], torch.ones(3))
    torch.testing.assert_close(alone[0, :, 48, 48], crops[0, :, 48, 48])


def test_steps_run_in_the_cards_order_on_bytes():
    crops, masks = field()
    steps = [{"step": "white_point", "share": 0.1}, {"step": "scale_to_unit"}]
    out = apply_steps((crops * 255).to(torch.uint8), (masks * 255).to(torch.uint8), steps, SIZE)
    torch.testing.assert_close(out[0, :, 90, 90], torch.ones(3), atol=0.01, rtol=0)
    assert out.dtype == torch.float32


def test_extreme_input_stays_finite():
    steps = [{"step": name} for name in STEPS]
    for value in (0, 255):
        for mask in (0, 255):
            crops = torch.full((2, 3, 96, 96), value, dtype=torch.uint8)
            masks = torch.full((2, 1, 96, 96), mask, dtype=torch.uint8)
            assert torch.isfinite(apply_steps(crops, masks, steps, SIZE)).all()


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match="unknown preprocessing step 'rm'"):
        check_steps([{"step": "rm"}])
