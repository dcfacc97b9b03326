"""What protocols are, in words that stand beside their numbers, and what comparing across two of them is worth."""

_WORDS = {
    "paper": "80 % of the tracks train and 20 % test, drawn by seed and stratified by class; no validation part",
    "kfold": "stratified folds by seed, each tested once by a model trained on the others, all tracks pooled",
    "official": "the data set's own folds or parts",
    "fault_filtered": "GTZAN without its known faults: 443 training, 197 validation and 290 test tracks, as published",
}


def protocol_words(protocol: str) -> str:
    """A protocol's name and what it does."""
    said = _WORDS.get(protocol.removesuffix("_val"), "")
    if protocol.endswith("_val"):
        said = said.replace("; no validation part", "") + "; a validation part is cut from the training recordings"
    return f"{protocol}: {said}" if said else protocol


def across_words(protocol: str, published: str | None) -> str:
    """What it is worth to hold numbers of `protocol` against published ones of another; empty where they are alike."""
    if published is None or protocol == published:
        return ""
    return (
        f"The published numbers were measured under {published}, ours under {protocol}: other test tracks, and another "
        "number of training tracks. A difference between them says nothing of the models. How much a protocol alone "
        "can be worth on GTZAN: the same features and classifier (Jukebox and an SVM) are reported at 92.5 % in random "
        "10-fold and at 79.7 % on the fault-filtered parts, since replicas, versions and tracks of one artist stand on "
        "both sides of a random split."
    )
