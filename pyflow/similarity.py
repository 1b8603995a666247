"""How alike two pictures are, picture by picture: squared error, PSNR and SSIM, of the whole picture or its hole alone.

Pictures are uint8 (N, height, width, channels), the real ones first; a mask is (N, 1, height, width) or one for all, 1
in the hole. Without a mask a figure is of the whole picture, with one it is of the hole alone: the kept pixels, which
are equal, would hide what was generated.
"""

from collections.abc import Iterator

import numpy as np

from .errors import InvalidInput

PEAK = 255
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03  # Wang et al. 2004
_CALL = 2**20  # values of a picture that are looked at in one go


def mse(real: np.ndarray, made: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The mean squared error of each picture, in squared steps of uint8: float64 (N,)."""
    holes = _checked(real, made, mask)
    off = np.square(real.astype(np.float32) - made).mean(axis=-1, dtype=np.float64)
    return _mean(off, holes)


def nmse(real: np.ndarray, made: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The mean squared error over the mean square of the real picture, black being 0: (N,).

    A hole is measured by the whole real picture too, as it may be black. Of a picture that is all black it is 0 where
    both are equal, and infinite elsewhere.
    """
    off = mse(real, made, mask)
    power = np.square(real, dtype=np.float32).mean(axis=(1, 2, 3), dtype=np.float64)
    return np.divide(off, power, out=np.where(off > 0, np.inf, 0.0), where=power > 0)


def psnr(real: np.ndarray, made: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The peak signal over the error, in dB: (N,); infinite where both are equal."""
    return decibels(mse(real, made, mask))


def decibels(off: np.ndarray) -> np.ndarray:
    """The PSNR of mean squared errors; infinite at 0.

    The PSNR of a set's mean error is finite though some of its pictures are equal, and never above the mean of their
    PSNRs.
    """
    off = np.asarray(off, np.float64)
    told = np.full(off.shape, np.inf)
    np.log10(PEAK**2 / np.where(off > 0, off, 1), out=told, where=off > 0)
    return 10 * told


def ssim(real: np.ndarray, made: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) with a Gaussian window of 11x11 and sigma 1.5: (N,), 1 where equal.

    The whole picture's is the mean over all windows inside it. A hole's is the mean over the windows around its pixels,
    the picture being mirrored at its borders. On a picture with a side below 11 the window has the largest odd side
    that fits. Channels are averaged.
    """
    holes = _checked(real, made, mask)
    _, height, width, _ = real.shape
    size = min(WINDOW, height - (height + 1) % 2, width - (width + 1) % 2)
    down, across = (_windows(side, size, mirrored=holes is not None) for side in (height, width))
    found = [
        _mean(_local(real[part], made[part], down, across), None if holes is None else holes[part])
        for part in _parts(real)
    ]
    return np.concatenate(found) if found else np.zeros(0)


def ssim_every_pixel(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """The whole picture's with a window around every pixel, the picture being mirrored at its borders: (N,).

    Above `ssim` where what differs lies in the middle: a pixel at the border, which few of the windows inside reach,
    then has the weight of any other.
    """
    _checked(real, made, None)
    return ssim(real, made, np.ones((1, *real.shape[1:3])))


def _local(real: np.ndarray, made: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """The similarity at each window: (N, rows, columns)."""
    x, y = (pictures.transpose(0, 3, 1, 2).astype(np.float64) for pictures in (real, made))

    def blurred(values: np.ndarray) -> np.ndarray:
        return np.asarray(down @ values @ across.T)

    mean_x, mean_y = blurred(x), blurred(y)
    both, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    covariance, variances = blurred(x * y) - both, blurred(x * x + y * y) - squares
    light, contrast = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    alike = (2 * both + light) * (2 * covariance + contrast) / ((squares + light) * (variances + contrast))
    return np.asarray(alike.mean(axis=1))


def _windows(side: int, size: int, mirrored: bool) -> np.ndarray:
    """A row a window, a column a pixel: the Gaussian's weights."""
    reach = size // 2
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * SIGMA**2))
    centres = np.arange(side) if mirrored else np.arange(reach, side - reach)
    pixels = centres[:, None] + np.arange(-reach, reach + 1)
    pixels = np.minimum(np.where(pixels < 0, -1 - pixels, pixels), 2 * side - 1 - pixels)
    matrix = np.zeros((len(centres), side))
    np.add.at(matrix, (np.arange(len(centres))[:, None], pixels), weights / weights.sum())
    return matrix


def _mean(values: np.ndarray, holes: np.ndarray | None) -> np.ndarray:
    """Of (N, rows, columns), over all or over each hole."""
    means = values.mean(axis=(1, 2)) if holes is None else (values * holes).sum(axis=(1, 2)) / holes.sum(axis=(1, 2))
    return np.asarray(means)


def _parts(pictures: np.ndarray) -> Iterator[slice]:
    step = max(1, _CALL // max(1, pictures[:1].size))
    return (slice(at, at + step) for at in range(0, len(pictures), step))


def _checked(real: np.ndarray, made: np.ndarray, mask: np.ndarray | None) -> np.ndarray | None:
    """The holes, boolean (N, height, width)."""
    for name, pictures in (("real", real), ("made", made)):
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or not all(pictures.shape[1:]):
            raise InvalidInput(
                f"the {name} pictures are {pictures.dtype} {pictures.shape}; "
                "expected uint8 (N, height, width, channels)"
            )
    if real.shape != made.shape:
        raise InvalidInput(f"the real pictures have shape {real.shape}, those made {made.shape}; expected the same")
    if mask is None:
        return None
    full = (len(real), 1, *real.shape[1:3])
    if mask.shape not in (full, full[1:]):
        raise InvalidInput(f"the mask has shape {mask.shape}; expected {full}, or {full[1:]} for all pictures")
    if not ((mask == 0) | (mask == 1)).all():
        values = np.unique(mask)[:4].tolist()
        raise InvalidInput(f"the mask has values such as {values}; expected 0 and 1, which is the hole")
    holes = np.broadcast_to(mask == 1, full)[:, 0]
    filled = holes.any(axis=(1, 2))
    if not filled.all():
        raise InvalidInput(f"mask {int(filled.argmin())} is 0 everywhere; expected a hole to look at")
    return holes
