"""What is read from files and arguments before a model is built, and what is refused in a sentence."""

import json
import shutil

import pytest
import torch

import gafx
from gafx import weights
from gafx.errors import UsageError

CLASSES = ["blues", "jazz", "rock"]
SLIM = {"name": "gafx_r", "width": 16}
AST = {"name": "ast", "depth": 1}


def build(frontend="mel", **more):
    torch.manual_seed(0)
    arguments = {"classifier": AST, "classes": CLASSES, "segment_seconds": 0.5, **more}
    return gafx.create_model(frontend, **arguments).eval()


def wave(seconds=0.5):
    return 0.1 * torch.randn(2, 1, round(seconds * 22050), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build(SLIM).save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


# --- files that torch wrote -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Sparse invariant:UserWarning")
@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({3: torch.zeros(1)}, "name of type int"),
        ({"a": [1]}, "'a' is a list"),
        ([torch.zeros(1)], "tensors by name"),
        ({"a": torch.eye(2).to_sparse()}, "'a' holds no plain values"),
        ({"a": torch.zeros(2, device="meta")}, "'a' holds no plain values"),
        ({"a": object()}, "more than tensors"),
    ],
)
def test_a_state_dict_holds_plain_tensors_by_name(state, words, tmp_path):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=words) as caught:
        weights.read_state_dict(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "a.pt")
    with pytest.raises(UsageError, match="more than tensors") as caught:
        weights.read_state_dict(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("partial", [False, True])
def test_a_module_that_refuses_its_weights(partial):
    layer = torch.nn.Linear(2, 1)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["weight"] = state["weight"].to_sparse()
    with pytest.raises(UsageError, match=r"a\.pt cannot be loaded into Linear"):
        weights.fit(layer, state, "a.pt", partial=partial)


@pytest.mark.parametrize("source", ["", " "])
def test_an_empty_name_is_no_folder(source):
    with pytest.raises(UsageError, match="is empty"):
        gafx.create_frontend("gafx_r", pretrained=source)
