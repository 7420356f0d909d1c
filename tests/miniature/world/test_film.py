"""Films: their plans, frames and sound."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from miniature.world.film import Film, FilmPlan, Seen, World, plan_film
from miniature.world.places import OFF_SCREEN, PLACES

HZ = 16_000
HISS = 0.01
"""No sample of a quiet room is louder."""


def plans(count: int = 2000, **world: Any) -> list[FilmPlan]:
    return [plan_film(World(**world), 0, "train", number) for number in range(count)]


def film_of(*seen: Seen, **decided: Any) -> Film:
    """A film of 4 s in a bare room, of which only the arguments are decided."""
    usual = {"seed": (7,), "place": "room", "off_screen": None, "noise": None, "still": False, "offset_s": 0.0}
    return Film(World(), FilmPlan(seen=seen, **usual | decided))


def test_the_splits_share_no_seed():
    train, test = ([plan_film(World(), 0, split, number) for number in range(200)] for split in ("train", "test"))
    assert len({plan.seed for plan in train + test}) == 400
    drawn = [{tuple(one.x for one in plan.seen) for plan in split} for split in (train, test)]
    assert not drawn[0] & drawn[1], "the same number is another film in the other split"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"duration_s": 1.0}, "duration_s is 1, wanted at least 2 s"),
        ({"duration_s": float("nan")}, "duration_s is nan, wanted at least 2 s"),
        ({"duration_s": "long"}, "duration_s is 'long', wanted a number"),
        ({"music": 1.1}, "music is 1.1, wanted a share within [0, 1]"),
        ({"out_of_sync": -0.1}, "out_of_sync is -0.1, wanted a share within [0, 1]"),
        ({"still": True}, "still is True, wanted a number"),
        ({"objects": ()}, "objects are [], wanted some of ball, bell, tap"),
        ({"objects": ("bell", "cat")}, "objects are ['bell', 'cat'], wanted some of ball, bell, tap"),
        ({"objects": ("bell", "bell")}, "wanted some of ball, bell, tap, engine, siren, drum, each once"),
        ({"two_sounding": 0.8, "resting": 0.4}, "two_sounding 0.8 and resting 0.4 exclude each other"),
        ({"voice": "robot"}, "voice is 'robot', wanted one of synthetic, espeak-ng"),
    ],
)
def test_a_world_that_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError) as caught:
        World(**values)
    assert words in str(caught.value)


def test_who_rests_and_who_is_dubbed_is_planned():
    for plan in plans(200, resting=1.0, two_sounding=0.0):
        assert (plan.seen[1].start_s, plan.seen[1].heard, len(plan.sounding)) == (None, False, 1)
    for kind in ({"resting": 1.0, "two_sounding": 0.0}, {"resting": 0.0, "two_sounding": 1.0}):
        for plan in plans(200, moving_silent=1.0, **kind):
            assert plan.seen[1].start_s is not None and not plan.seen[1].heard and plan.seen[0].heard
    usual = Counter((len(plan.seen), len(plan.sounding)) for plan in plans())
    shares = {what: count / 2000 for what, count in usual.items()}
    assert shares == pytest.approx({(2, 2): 0.4, (2, 1): 0.3, (1, 1): 0.3}, abs=0.04)


def test_a_film_is_the_same_however_often_and_at_whatever_rate_it_is_played():
    plan = replace(plan_film(World(), 0, "train", 0), noise="music and narration", still=False)
    film, other = Film(World(), plan), Film(World(), plan)
    sound = film.sound(HZ, stereo=True)
    assert (film.frames([0.5, 1.0]) == other.frames([0.25, 0.5, 0.75, 1.0])[1::2]).all()
    assert (film.sound(HZ, stereo=True) == sound).all() and (other.sound(HZ, stereo=True) == sound).all()
    assert film.sound(44_100, stereo=False).shape == (4 * 44_100, 1)


def test_a_place_can_be_told_by_its_looks():
    """The nearest mean picture of the others names the place of nearly every film."""
    shown = {place: [draw(np.random.default_rng(seed)) for seed in range(8)] for place, (draw, _) in PLACES.items()}
    right = 0
    for place, pictures in shown.items():
        for number, picture in enumerate(pictures):
            means = {
                other: np.mean([p for k, p in enumerate(shown[other]) if (other, k) != (place, number)], axis=0)
                for other in PLACES
            }
            right += place == min(means, key=lambda other: float(np.square(picture - means[other]).mean()))
    assert right >= 0.9 * 8 * len(PLACES)


def test_a_places_sound_is_there_with_its_place():
    usual = plans()
    assert {plan.place for plan in usual} == PLACES.keys()
    for place, (_, belongs) in PLACES.items():
        heard = Counter(plan.off_screen for plan in usual if plan.place == place)
        assert heard.keys() <= {belongs, None}, "nothing that belongs elsewhere"
        if belongs is not None:
            assert heard[belongs] / heard.total() == pytest.approx(0.85, abs=0.06)
    odd = plans(odd_place=1.0)
    for place in PLACES:
        heard = Counter(plan.off_screen for plan in odd if plan.place == place)
        shares = {what: count / heard.total() for what, count in heard.items()}
        assert shares == pytest.approx(dict.fromkeys([*OFF_SCREEN, None], 0.2), abs=0.08)


@pytest.mark.parametrize("layer", [*({"off_screen": name} for name in OFF_SCREEN), {"noise": "music"},
                                   {"noise": "narration"}, {"noise": "music and narration"}])  # fmt: skip
def test_what_is_not_in_the_picture_is_heard_and_changes_no_picture(layer):
    seen = Seen("bell", 0.5, 0.8, 0.5, True)
    times_s = [0.0, 0.6, 1.5]
    assert (film_of(seen, **layer).frames(times_s) == film_of(seen).frames(times_s)).all()
    with_it, without = (film.sound(HZ, stereo=False) for film in (film_of(**layer), film_of()))
    assert np.abs(without).max() < HISS < 0.1 < np.abs(with_it).max() < 0.6


def test_noise_is_independent_of_the_picture():
    """Whether it is added changes nothing else, and no place and no object has more of it."""
    quiet, loud = plans(200, music=0.0, narration=0.0), plans(200, music=1.0, narration=1.0)
    assert {plan.noise for plan in quiet} == {None} and {plan.noise for plan in loud} == {"music and narration"}
    assert [replace(plan, noise=None) for plan in loud] == quiet
    usual = plans(3000)
    groups: list[Callable[[FilmPlan], object]] = [
        lambda plan: plan.place, lambda plan: plan.seen[0].kind, lambda plan: len(plan.seen),
        lambda plan: plan.off_screen is None, lambda plan: plan.seen[-1].x < 0.5,
    ]  # fmt: skip
    for group in groups:
        for value in {group(plan) for plan in usual}:
            here = [plan for plan in usual if group(plan) == value]
            for noise in ("music", "narration"):
                assert np.mean([noise in (plan.noise or "") for plan in here]) == pytest.approx(0.25, abs=0.065)


def test_a_still_film_has_one_picture_and_all_of_its_sound():
    seen = Seen("drum", 0.5, 0.8, 0.5, True)
    moving, still = film_of(seen), film_of(seen, still=True)
    frames = still.frames(np.arange(0, 4, 0.25).tolist())
    assert (frames == moving.frames([0.0])).all()
    assert (still.sound(HZ, stereo=True) == moving.sound(HZ, stereo=True)).all()
    assert still.truth()["still"] and all(plan.still for plan in plans(50, still=1.0))


def test_a_film_out_of_sync_has_its_sound_shifted_by_its_offset():
    world, shifts = World(out_of_sync=1.0, still=0.0), []
    for number in range(6):
        plan = plan_film(world, 0, "train", number)
        late, right = Film(world, plan), Film(world, replace(plan, offset_s=0.0))
        assert 0.15 <= abs(plan.offset_s) <= 0.5 and late.truth()["offset_s"] == plan.offset_s
        assert (late.frames([1.0]) == right.frames([1.0])).all()
        assert late.truth()["seen"] == right.truth()["seen"], "times are those of the picture"
        a, b = (film.sound(HZ, stereo=False)[:, 0] for film in (late, right))
        alike = np.fft.irfft(np.fft.rfft(a, 2 * len(a)) * np.conj(np.fft.rfft(b, 2 * len(b))))
        lag = int(np.argmax(alike))
        shifts.append((lag if lag < len(a) else lag - 2 * len(a)) / HZ)
        assert shifts[-1] == pytest.approx(plan.offset_s, abs=0.001)
    assert min(shifts) < 0 < max(shifts), "early or late"
    assert {plan.offset_s for plan in plans(100)} == {0.0}
