"""Times and shares as people read them."""


def clock(seconds: float, step: float = 1.0) -> str:
    """`3:25`, or `1:02:03` from an hour on; with tenths where `step` is finer than a second."""
    whole, tenth = divmod(round(seconds * 10), 10) if step < 1 else (round(seconds), 0)
    minutes, left = divmod(whole, 60)
    said = f"{minutes // 60}:{minutes % 60:02}:{left:02}" if minutes >= 60 else f"{minutes}:{left:02}"
    return f"{said}.{tenth}" if step < 1 else said


def percent(share: float) -> str:
    """A share in whole percent, with a digit below ten and where 100 would be too much said."""
    value = 100 * share
    return f"{value:.0f} %" if 9.95 <= value < 99.5 or value < 0.05 or value >= 99.95 else f"{value:.1f} %"
