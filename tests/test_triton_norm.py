"""The Triton kernel of group norm, FiLM and SiLU against torch; what it refuses. It compiles in test_triton_step.py."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from pyflow.kernels import norm  # noqa: E402

from pyflow.errors import InvalidInput  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Of values below 1 the error itself, for the sum with the offset cancels. The interpreter truncates bfloat16.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def operands(rng, shape, dtype, device, filmed=True) -> dict:
    batch, channels = shape[:2]

    def drawn(*sizes, about=0.0):
        return torch.from_numpy(rng.standard_normal(sizes)).add(about).to(device, dtype)

    film = drawn(batch, 2 * channels)
    scale, shift = film.chunk(2, dim=1)  # as the UNet has them: views
    return {
        "x": drawn(*shape, about=3.0).to(memory_format=torch.channels_last),
        "weight": drawn(channels, about=1.0),
        "bias": drawn(channels),
        **({"scale": scale, "shift": shift} if filmed else {}),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("filmed", [False, True], ids=["plain", "filmed"])
@pytest.mark.parametrize("shape", [(1, 8, 1, 2), (2, 24, 5, 7), (3, 64, 16, 16), (1, 384, 32, 32)])
def test_parity(rng, kernel_device, shape, filmed, dtype):
    given = operands(rng, shape, dtype, kernel_device, filmed)
    came, wanted = norm.norm_film_silu(**given), norm.reference(**given)
    assert came.dtype == dtype
    assert came.stride() == given["x"].stride()
    error = (came.float() - wanted.float()).abs() / wanted.float().abs().clamp(min=1)
    assert error.max() <= TOLERANCE[dtype], float(error.max())


def test_a_large_mean_leaves_the_variance(rng, kernel_device):
    given = operands(rng, (2, 16, 8, 8), torch.float32, kernel_device)
    given["x"] += 1000
    torch.testing.assert_close(norm.norm_film_silu(**given), norm.reference(**given), rtol=1e-3, atol=1e-3)


def test_the_blocks_of_the_unet_say_the_same(rng, kernel_device):
    from tiny import UNET, network

    block = network(UNET, seed=0).to(kernel_device).middle[0]
    given = operands(rng, (2, 16, 4, 4), torch.float32, kernel_device)
    film = torch.cat([given["scale"], given["shift"]], dim=1)
    seen = {}
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.update(wanted=inputs[0]))
    block.norm2.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    with torch.inference_mode():
        block(given["x"], film)
        x = seen["x"].contiguous(memory_format=torch.channels_last)
        came = norm.norm_film_silu(x, block.norm2.weight, block.norm2.bias, *film.chunk(2, dim=1))
    torch.testing.assert_close(came, seen["wanted"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda given: given.update(x=given["x"].contiguous()), "lie channels last"),
        (lambda given: given.update(x=given["x"].double()), "x is torch.float64"),
        (lambda given: given.update(groups=5), "a multiple of groups=5"),
        (lambda given: given.pop("shift"), "both or neither"),
        (lambda given: given.update(weight=given["weight"][:3]), "weight is .* expected .16,"),
        (lambda given: given.update(scale=given["scale"].contiguous()), "expected equal ones"),
    ],
    ids=["layout", "dtype", "groups", "half a film", "weight", "strides"],
)
def test_misfits_are_refused(rng, kernel_device, spoil, sentence):
    given = operands(rng, (2, 16, 4, 4), torch.float32, kernel_device)
    spoil(given)
    with pytest.raises(InvalidInput, match=sentence):
        norm.norm_film_silu(**given)
