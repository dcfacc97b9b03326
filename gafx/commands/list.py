"""`gafx list`: registered parts and data sets with their arguments."""

import argparse

from gafx.errors import UsageError
from gafx.registry import CLASSIFIERS, FRONTENDS, OBJECTIVES, REQUIRED, SOURCES, Registry, type_name
from gafx.saving.catalogue import CATALOGUE, PART_WEIGHTS, describe_cache, list_models

_KINDS: dict[str, Registry] = {
    "frontends": FRONTENDS,
    "classifiers": CLASSIFIERS,
    "objectives": OBJECTIVES,
    "data": SOURCES,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("kind", nargs="?", choices=sorted(_KINDS), help="only these")
    parser.add_argument(
        "--pretrained", action="store_true",
        help="list the published models that --model and gafx.load take by name, weights of parts, and their terms",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> None:
    """Print the parts of one kind, or of all, or the published models."""
    if parsed.pretrained:
        if parsed.kind:
            raise UsageError(f"gafx list {parsed.kind} --pretrained: name a kind of part, or --pretrained, not both")
        print("\n\n".join(model.describe() for model in list_models(pretrained=True)))
        print("\nweights of parts, which a training starts from:\n")
        print("\n\n".join(each.describe() for each in PART_WEIGHTS))
        print(f"\n{describe_cache()}")
        return
    for kind in [parsed.kind] if parsed.kind else list(_KINDS):
        print(f"{kind}:")
        for name in _KINDS[kind].names():
            print(f"  {name}")
            for keyword in _KINDS[kind].keywords(name).values():
                default = "(required)" if keyword.default is REQUIRED else f"= {keyword.default}"
                print(f"    {keyword.name} {default}  ({type_name(keyword.annotation)})")
    if not parsed.kind:
        print(f"published models: {', '.join(CATALOGUE)} (gafx list --pretrained); {describe_cache()}")
