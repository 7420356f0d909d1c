"""Captions and their claims: the two agree on every film, and scores count what their names say."""

import json
from collections import Counter

import pytest

from miniature.language import (
    Heard,
    caption_scores,
    claimed_by,
    heard_by_truth,
    heard_in,
    sound_caption,
    visible_caption,
)
from miniature.phrasings import project_prompts
from miniature.world.film import Film, World, plan_film
from soundcap.curate import CaptionRow, Rules, curate

NOISY = World(music=0.5, narration=0.5, odd_place=0.3, moving_silent=0.3)
PLANS = [plan_film(NOISY, 7, "train", number) for number in range(300)]


def test_a_caption_claims_just_what_is_heard():
    for plan in PLANS:
        assert claimed_by(sound_caption(plan)) == heard_in(plan), sound_caption(plan)


@pytest.mark.parametrize("unmentioned", [{"music"}, {"narration"}, {"music", "narration"}])
def test_what_is_to_be_left_out_is_and_nothing_else(unmentioned):
    for plan in PLANS:
        said, true = claimed_by(sound_caption(plan, unmentioned=unmentioned)), heard_in(plan)
        assert said == Heard(true.objects, true.surroundings, true.noises - unmentioned)


def test_the_truth_file_says_the_same():
    for plan in PLANS[:40]:
        assert heard_by_truth(json.loads(json.dumps(Film(NOISY, plan).truth()))) == heard_in(plan)


def test_what_is_visible_names_every_object_and_no_sound():
    for plan in PLANS:
        text = visible_caption(plan)
        assert set(claimed_by(text).objects) == {one.kind for one in plan.seen}
        assert not claimed_by(text).noises and not claimed_by(text).surroundings


def test_captions_without_noise_pass_the_projects_rules():
    rows = [
        CaptionRow(str(k), plan.label, sound_caption(plan, unmentioned=plan.noises)) for k, plan in enumerate(PLANS)
    ]
    verdicts = curate(rows, Rules(max_duplicate_share=None), project_prompts()[0].warnings)
    assert Counter(verdict.rule for verdict in verdicts) == {None: len(PLANS)}


def test_words_that_only_look_alike_claim_nothing():
    assert claimed_by("A ballad of a dreary engagement, belligerent and clocked") != claimed_by("A ball.")
    assert claimed_by("Nothing is heard.") == Heard((), frozenset(), frozenset())


def test_scores_of_captions_counted_by_hand():
    def heard(objects: str, surroundings: str = "", noise: str = "") -> Heard:
        return Heard(tuple(objects.split()), frozenset(surroundings.split()), frozenset(noise.split()))

    truths = [heard("ball bell", "birds", "music"), heard("drum", "", "narration music"), heard("tap", "waves")]
    claims = [heard("bell ball", "birds", "music"), heard("drum siren"), heard("", "clock", "narration")]
    assert caption_scores(truths, claims) == {
        "true": 0.0,
        "on_screen_recall": 3 / 4,
        "off_screen_recall": 1 / 2,
        "false_on_screen": 1 / 3,
        "false_off_screen": 1 / 3,
        "order": 0.0,
        "music_mentioned": 1 / 2,
        "narration_mentioned": 0.0,
        "noise_mentioned": 1 / 3,
        "false_noise": 1 / 3,
    }
    assert caption_scores(truths, truths)["true"] == 1.0
    assert caption_scores([heard("tap")], [heard("tap")])["off_screen_recall"] is None
