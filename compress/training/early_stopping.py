"""Ends a run early where its validation accuracy stays below a floor, so that a search can use the time better."""

from compress.utils.errors import EarlyStopped


def check_early_stopping(stage: str, curve: list[float], min_val_metric: list[float]) -> None:
    """Raises EarlyStopped at the first epoch whose best accuracy so far is below its floor.

    `curve` is the validation metric and `min_val_metric` its floor, in percent, an epoch each. An epoch without a floor
    cannot fail.
    """
    for epoch, floor in enumerate(min_val_metric[: len(curve)], 1):
        best = max(curve[:epoch])
        if best < floor:
            raise EarlyStopped(
                f"{best:.2f} % of the validation metric as the best of {epoch} epochs of {stage}",
                f"{floor:.2f} % by then (stop_below.{stage})",
                f"lower stop_below.{stage}, or set it to []",
            )
