"""Labels of any data set, checked: a class per sample or per time step, and no class without samples."""

import numpy as np


def step_labels(y: np.ndarray, samples: int, T: int | None, lengths: np.ndarray | None, name: str = "y") -> np.ndarray:
    """Labels as integers [D] or [D, T]; one-hot ones [D, T, C] become -1 where all are 0. Past ``lengths`` they are -1.

    Raises ValueError, naming what is allowed.
    """
    allowed = f"integers [{samples}]" + (f", [{samples}, {T}] or one-hot [{samples}, {T}, C]" if T else "")
    steps = (samples, T)
    if y.shape[:1] != (samples,) or not (y.ndim == 1 or (T is not None and y.ndim in (2, 3) and y.shape[:2] == steps)):
        raise ValueError(f"{name} has shape {list(y.shape)}; allowed: {allowed}")
    if y.dtype == bool and y.ndim == 3:
        y = y.astype(np.uint8)
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"{name} is {y.dtype}; allowed: {allowed}")
    if y.ndim == 3:
        total = y.sum(2, dtype=np.int64)
        if y.min() < 0 or y.max() > 1 or total.max() > 1:
            raise ValueError(f"{name} is [D, T, C] and not one-hot; allowed: at most a single 1 per step, else 0")
        y = np.where(total == 0, -1, y.argmax(2))
    if y.ndim == 2:
        y = y.astype(np.int64)
        if lengths is not None:
            y[np.arange(y.shape[1]) >= lengths[:, None]] = -1
    return y


def check_classes(labels: dict[str, np.ndarray], classes: int | None, names: list[str] | None = None) -> int:
    """The number of classes of ``labels`` by split; raises ValueError for a label outside, or a class to train without.

    ``names``, of the classes, are for messages.
    """
    if classes is not None and (not isinstance(classes, int) or classes < 1):
        raise ValueError(f"classes is {classes!r}; allowed: an integer, 1 or more")
    most = classes if classes is not None else 1 + max(int(y.max()) for y in labels.values())
    for split, y in labels.items():
        least = -1 if y.ndim == 2 else 0
        outside = (y < least) | (y >= most)
        if outside.any():
            place = np.unravel_index(int(np.argmax(outside)), y.shape)
            where = f"{split} sample {place[0]}" + (f", step {place[1]}" if y.ndim == 2 else "")
            none = ", or -1 for a step without a label" if y.ndim == 2 else ""
            raise ValueError(f"the label of {where} is {y[place]}; allowed: 0 to {most - 1}{none}")
        if y.ndim == 2 and (y < 0).all():
            raise ValueError(f"no step of the {split} samples has a label; allowed: some from 0 on")
    train = labels["train"]
    counts = np.bincount(train[train >= 0], minlength=most)
    if most > 2**15:
        raise ValueError(f"the largest label is {most - 1}; allowed: 0 to {2**15 - 1}")
    if not counts.all():
        empty = int(np.argmin(counts > 0))
        called = f" ({names[empty]})" if names else ""
        raise ValueError(
            f"class {empty}{called} of 0 to {most - 1} has no training sample; allowed: labels 0 to C - 1, all in use"
        )
    return most
