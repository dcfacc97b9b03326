"""What protocols are, in words that stand beside their numbers, and what comparing across two of them is worth."""

_WORDS = {
    "paper": "{train:.0%} of the tracks train and {test:.0%} test, drawn by seed and stratified by class",
    "kfold": "stratified folds by seed, each tested once by a model trained on the others, all tracks pooled",
    "official": "the data set's own folds or parts",
    "fault_filtered": "GTZAN without its known faults: 443 training, 197 validation and 290 test tracks, as published",
}


def protocol_words(protocol: str, *, test_fraction: float = 0.2, val_fraction: float = 0.1) -> str:
    """A protocol's name and what it does, with `data.test_fraction` and `data.val_fraction` as they were."""
    base = protocol.removesuffix("_val")
    if base not in _WORDS:
        return protocol
    said = _WORDS[base].format(train=1 - test_fraction, test=test_fraction).replace("%", " %")
    if protocol.endswith("_val"):
        said += f"; {val_fraction:.0%} of the training recordings validate".replace("%", " %")
    elif base != "fault_filtered":
        said += "; no validation part"
    return f"{protocol}: {said}"


def across_words(data: str, protocol: str, published_data: str | None, published_protocol: str | None) -> str:
    """What it is worth to hold numbers against published ones; empty where data and protocol are the same.

    Args:
        data, protocol: of our numbers.
        published_data, published_protocol: of the published ones; None where that is not known.
    """
    if published_data is not None and published_data != data:
        return (
            f"The published numbers were measured on {published_data}, ours on {data}: there is nothing to compare "
            "between them."
        )
    if published_protocol is None:
        return "Under which protocol the published numbers were measured is not known here, so nothing can be compared."
    if protocol == published_protocol:
        return ""
    words = (
        f"The published numbers were measured under {published_protocol}, ours under {protocol}: other test tracks, "
        "and another number of training tracks. A difference between them says nothing of the models."
    )
    if data != "gtzan":
        return words
    return (
        f"{words} How much a protocol alone can be worth on GTZAN: the same features and classifier (Jukebox and an "
        "SVM) are reported at 92.5 % in random 10-fold and at 79.7 % on the fault-filtered parts, since replicas, "
        "versions and tracks of one artist stand on both sides of a random split."
    )
