"""What NeMo 3.0.0 gave for a tiny model, ours gives; and its file comes back with the same bits.

`nemo.nemo` and `nemo.npz` were made by `python -m benchmarks.pretraining.reference tests/pretraining/audio`.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from qwen_term_retrieval.cli import app
from qwen_term_retrieval.pretraining.audio import NestForPreTraining
from qwen_term_retrieval.pretraining.audio.nemo import convert_nemo, our_name, read_nemo, write_nemo
from tests.doubles.tiny_nest import tiny_nest

HERE = Path(__file__).parent
FILE = HERE / "nemo.nemo"


@pytest.fixture(scope="module")
def nemo():
    return {name: torch.from_numpy(values) for name, values in np.load(HERE / "nemo.npz").items()}


@pytest.fixture(scope="module")
def model():
    return read_nemo(FILE)


def heard(model, nemo, mask=None):
    return model(
        nemo["clean_pcm_BS"], nemo["num_samples_B"], noisy_pcm_BS=nemo["noisy_pcm_BS"],
        mask=None if mask is None else mask[:, : int(nemo["num_mel_B"].max())],
    )  # fmt: skip


def test_mel_frames_are_nemos(model, nemo):
    for name in ("clean", "noisy"):
        mel_BMF, num_mel_B = model.mel(nemo[f"{name}_pcm_BS"], nemo["num_samples_B"])
        assert num_mel_B.tolist() == nemo["num_mel_B"].tolist()
        # What NeMo wrote on one processor: of ten values in 23,520 another one's sums differ by up to 8.4e-6. In one
        # process both differ by 2.3e-6 at most (`python -m benchmarks.pretraining --only equality`).
        torch.testing.assert_close(mel_BMF, nemo[f"{name}_mel_BMF"][:, : mel_BMF.shape[1]], atol=2e-5, rtol=0)


def test_tokens_are_nemos(model, nemo):
    tokens_BTH = heard(model, nemo).tokens_BTH
    expected_BTH = nemo["tokens_BTH"][:, : tokens_BTH.shape[1]]
    for row, count in enumerate(nemo["num_frames_B"].tolist()):
        assert torch.equal(tokens_BTH[row, :count], expected_BTH[row, :count])
    assert len(tokens_BTH.unique()) > 10


def test_frames_probabilities_and_loss_are_nemos(model, nemo):
    output = heard(model, nemo, nemo["mask_BM"])
    assert output.num_frames_B.tolist() == nemo["num_frames_B"].tolist()
    for row, count in enumerate(nemo["num_frames_B"].tolist()):
        frames_TD = output.frames_BTD[row, :count]
        torch.testing.assert_close(frames_TD, nemo["frames_BTD"][row, :count], atol=5e-6, rtol=0)
        torch.testing.assert_close(model.log_probs(frames_TD), nemo["log_probs_BTCH"][row, :count], atol=5e-6, rtol=0)
    torch.testing.assert_close(output.loss, nemo["loss"], atol=1e-6, rtol=0)


def test_gradients_are_nemos(model, nemo):
    heard(model, nemo, nemo["mask_BM"]).loss.backward()
    named = dict(model.named_parameters())
    names = [name for name in nemo if name.startswith("gradient ")]
    assert len(names) == 7
    for name in names:
        own = named[our_name(name.removeprefix("gradient "))].grad
        torch.testing.assert_close(own, nemo[name].view_as(own), atol=1e-6, rtol=0, msg=name)


def test_a_checkpoint_of_nemos_comes_back_with_the_same_bits(tmp_path):
    folder = convert_nemo(FILE, tmp_path / "nest")
    back = convert_nemo(folder, tmp_path / "back.nemo")
    (_, before), (settings, after) = map(unpacked, (FILE, back))
    assert before.keys() == after.keys()
    for name, values in before.items():
        same = values.dtype == after[name].dtype and values.shape == after[name].shape
        assert same, name
        if name.startswith("encoder.") or name.startswith("decoder."):
            assert torch.equal(values, after[name]), name
        torch.testing.assert_close(after[name], values, atol=1e-7, rtol=0, msg=name)
    assert settings["target"].endswith("EncDecDenoiseMaskedTokenPredModel")
    own, again = (NestForPreTraining.from_pretrained(folder), read_nemo(back))
    assert all(torch.equal(values, again.state_dict()[name]) for name, values in own.state_dict().items())
    first, second = (each.config.encoder.to_dict() | {"dtype": None} for each in (own, again))
    assert first == second


def unpacked(file):
    with tarfile.open(file) as tar:
        read = {Path(member.name).name: tar.extractfile(member).read() for member in tar if member.isfile()}
    return yaml.safe_load(read["model_config.yaml"]), torch.load(io.BytesIO(read["model_weights.ckpt"]))


def repacked(file, **changes):
    """A copy of the file with other settings."""
    settings, weights = unpacked(FILE)
    for name, value in changes.items():
        part, _, setting = name.rpartition("__")
        (settings[part] if part else settings)[setting] = value
    saved = io.BytesIO()
    torch.save(weights, saved)
    contents = {"model_config.yaml": yaml.safe_dump(settings).encode(), "model_weights.ckpt": saved.getvalue()}
    with tarfile.open(file, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "nemo.collections.asr.models.EncDecCTCModelBPE"}, "is a EncDecCTCModelBPE, not a NEST checkpoint"),
        ({"mask_position": "post_conv"}, "tokens are those of features of its own"),
        ({"encoder__conv_norm_type": "layer_norm"}, r"encoder.conv_norm_type is 'layer_norm', and only 'batch_norm'"),
        ({"encoder__n_layers": 3}, r"its weights do not fit its settings: missing \['encoder.layers.2"),
    ],
)
def test_what_is_no_nest_checkpoint_of_ours_is_refused_by_name(tmp_path, changes, message):
    file = repacked(tmp_path / "other.nemo", **changes)
    with pytest.raises(ValueError, match=message):
        read_nemo(file)


def test_what_is_no_whole_file_is_refused(tmp_path):
    broken = tmp_path / "broken.nemo"
    broken.write_bytes(FILE.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"broken.nemo is no .nemo file, or not a whole one"):
        read_nemo(broken)
    with pytest.raises(FileNotFoundError, match=r"no file .*none.nemo"):
        read_nemo(tmp_path / "none.nemo")
    with pytest.raises(ValueError, match=r"mask_position is 'after'"):
        write_nemo(tiny_nest(mask_position="after"), tmp_path / "after.nemo")


def test_the_command_converts_both_ways_and_replaces_nothing_unasked(tmp_path):
    runner = CliRunner()
    folder, back = tmp_path / "nest", tmp_path / "back.nemo"
    assert runner.invoke(app, ["convert-nemo", str(FILE), str(folder)]).exit_code == 0
    assert runner.invoke(app, ["convert-nemo", str(folder), str(back)]).exit_code == 0
    refused = runner.invoke(app, ["convert-nemo", str(folder), str(back)])
    assert refused.exit_code == 1
    assert "is there already; pass --overwrite" in refused.output
    assert runner.invoke(app, ["convert-nemo", str(folder), str(tmp_path / "other")]).exit_code == 1
