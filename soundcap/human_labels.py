"""Human labels of VGGSound's test clips: what is heard in them, what is only seen, and what was added to them.

They are those of VGGSounder (Zverev et al., VGGSounder: Audio-Visual Evaluations for Foundation Models, ICCV 2025),
by the package of that name.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

ADDED = {"music": "background_music", "speech": "voice_over"}
"""VGGSounder's flag of a sound that was added to a clip, by the name of the warning against it."""
VGGSOUND_ID = re.compile(r"[\w-]{11}_\d{6}", re.ASCII)
PASSED_OVER = frozenset({"playing", "people", "sound", "sounds", "noise", "other", "with", "from", "and", "the"})
"""Words of labels that name no sound of their own."""
SAME = {"man": "male", "men": "male", "woman": "female", "women": "female"} | dict.fromkeys(
    ("children", "kid", "boy", "girl"), "child"
)
"""Word of the labels for a stem of captions: labels say "male singing", captions "a man sings"."""


@dataclass(frozen=True, slots=True)
class HumanLabels:
    """Labels that people gave to a clip of 10 s, in the words of VGGSound's classes.

    Attributes:
        on_screen: of what is heard and seen.
        off_screen: of what is only heard.
        unheard: of what is only seen.
        added: names in ADDED of the sounds that were added to the clip.
    """

    on_screen: tuple[str, ...] = ()
    off_screen: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()
    added: frozenset[str] = frozenset()


def vggsound_id(video_id: str, start_s: float) -> str:
    """Id of a VGGSound clip, such as "---g-f_I2yQ_000001"; "" for what cannot be one.

    Args:
        video_id: YouTube's id, or a file's name without suffix, which may be the clip's id itself.
        start_s: where the clip starts in the video, in seconds; VGGSound's are whole.
    """
    name = PurePosixPath(video_id).name
    found = name if VGGSOUND_ID.fullmatch(name) else f"{name}_{start_s:06.0f}"
    return found if VGGSOUND_ID.fullmatch(found) and float(start_s).is_integer() else ""


def human_labels(clips: Iterable[str]) -> dict[str, HumanLabels]:
    """Human labels of those VGGSound ids that VGGSounder has; "" is none."""
    wanted = set(clips) - {""}
    if not wanted:
        return {}
    from vggsounder import VGGSounder  # reads its table, 0.5 s, so only where some clip may be in it

    # Without the argument it leaves out every clip with background music.
    labelled = VGGSounder(background_music=None)
    found: dict[str, HumanLabels] = {}
    for clip in sorted(wanted & set(labelled.keys())):
        data = labelled[clip]
        by_sense: dict[str, tuple[str, ...]] = {"AV": (), "A": (), "V": ()}
        for label, sense in zip(data.labels, data.modalities, strict=True):
            by_sense[sense] += (label,)
        added = frozenset(name for name, flag in ADDED.items() if data.meta_labels[flag])
        found[clip] = HumanLabels(by_sense["AV"], by_sense["A"], by_sense["V"], added)
    return found


def is_named(label: str, caption: str) -> bool:
    """True if a caption has all words of a label, or of one of its namings ("bird chirping, tweeting" has two).

    Words count in any regular inflection (:func:`stem`), in any order. Those in PASSED_OVER, and those of less than
    three letters, need not be there. Synonyms ("a man talks" for "man speaking") count as not named.
    """
    said = stems(caption)
    return any(naming and naming <= said for naming in map(label_stems, label.split(",")))


def label_stems(label: str) -> set[str]:
    """Stems of the words of a label that name its sound; empty if none does."""
    return stems(" ".join(word for word in re.findall(r"\w{3,}", label.casefold()) if word not in PASSED_OVER))


def stems(text: str) -> set[str]:
    """Stems of the words of a text."""
    words = re.findall(r"\w+", text.casefold())
    return {stem(SAME.get(stem(word), word)) for word in words}


def stem(word: str) -> str:
    """Stem that the regular inflections of an English word in lower case share.

    Barking, barks and barked give bark; idling and idles idl, as idle does. It is that of Porter (An algorithm for
    suffix stripping, 1980), steps 1a to 1c, without the conditions that rare words need; "e" at the end goes too.
    """
    if not word.endswith("ss"):
        for ending in ("ing", "ed", "es", "s", "e"):
            base = word.removesuffix(ending)
            if base != word and len(base) >= 3 and re.search("[aeiouy]", base) and not word.endswith("eed"):
                word = base
                break
    return re.sub("y$", "i", re.sub(r"([bdgmnprt])\1$", r"\1", word))
