"""Captioner inputs prepared once for any prompt: the same inputs as preparing them anew for every prompt."""

import shutil

import numpy as np
import pytest
import torch

from miniature.language import sound_caption
from miniature.models.captioner_inputs import FRAMES, caption_request, collate, prepare_film
from miniature.models.captioners import answer_loss, save
from miniature.phrasings import short_prompt
from miniature.world.film import World, plan_film
from soundcap.inputs import prepare_inputs
from soundcap.pretrained import load_model, load_processor

WORLD = World(duration_s=2.5)


@pytest.fixture(scope="module", params=["omni", "vl"])
def checkpoint(request):
    """Folder of a tiny checkpoint. Not to be written to."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="module")
def asked(checkpoint):
    processor, rng = load_processor(str(checkpoint)), np.random.default_rng(0)
    plans = [plan_film(WORLD, 0, "train", number) for number in range(3)]
    return processor, [(plan, short_prompt(rng).text, sound_caption(plan)) for plan in plans]


def test_the_same_inputs_as_preparing_anew(asked):
    processor, rows = asked
    got = collate(processor, [(prepare_film(processor, WORLD, plan), prompt, answer) for plan, prompt, answer in rows])
    wanted = prepare_inputs(
        processor,
        [caption_request(WORLD, plan, prompt, hears=processor.family.hears) for plan, prompt, _ in rows],
        answers=[answer for *_, answer in rows],
        frames=FRAMES,
    )
    for name, tensor in got.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, wanted[name].float(), atol=2e-3, rtol=2e-3, msg=name)
        else:
            assert torch.equal(tensor, wanted[name]), name
    # The rates are used for positions alone, which are there already.
    assert wanted.keys() - got.keys() <= {"second_per_grid_ts", "video_second_per_grid"}


def test_text_alone_may_stand_beside_films(asked, checkpoint):
    processor, rows = asked
    (plan, prompt, answer), *_ = rows
    model = load_model(str(checkpoint)).eval()
    film = prepare_film(processor, WORLD, plan)
    with torch.no_grad():
        together = answer_loss(model, collate(processor, [(film, prompt, answer), (None, "Say it.", "A bell rings.")]))
        alone = [
            answer_loss(model, collate(processor, [one]))
            for one in ((film, prompt, answer), (None, "Say it.", "A bell rings."))
        ]
    tokens = [len(processor.hf.tokenizer(text)["input_ids"]) + 1 for text in (answer, "A bell rings.")]
    wanted = sum(n * loss for n, loss in zip(tokens, alone, strict=True)) / sum(tokens)
    torch.testing.assert_close(together, wanted, rtol=1e-4, atol=1e-4)


def test_what_is_saved_is_loaded_again_in_bfloat16(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    model = load_model(str(checkpoint))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    wanted = {name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()}
    save(model, tmp_path)
    for name, weight in load_model(str(tmp_path), dtype="bfloat16").state_dict().items():
        assert torch.equal(weight, wanted[name]), name
