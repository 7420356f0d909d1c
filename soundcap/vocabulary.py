"""Word lists of the curation rules, and their matching: regular expressions, whole words, in any case.

The lists hold what a sound caption has no good reason to say. Words that also serve to describe sound are left
out on purpose: a siren is a *warning* siren, hooves go *clip*-clop, a window *frame* rattles. Words of added music
and speech stand with the warnings against them, in ``prompts/warnings.yaml``.
"""

import re
from functools import lru_cache

Patterns = tuple[str, ...]

REFUSALS = (
    r"as an? (?:AI|artificial|language model|assistant)",
    r"I(?:'m| am) (?:sorry|unable|not able|an AI)",
    r"I (?:cannot|can't|can ?not|do not|don't|couldn't|could not|am unable to|apologi[sz]e)",
    r"(?:unable|not possible|impossible) to (?:determine|describe|provide|identify|hear|tell)",
    r"(?:please|could you) (?:provide|upload|share)",
    r"no (?:audio|sound|video|clip) (?:was|is|has been) (?:provided|attached|available|given)",
)

META_TALK = (
    r"(?:the|this|these|your|my|any) warnings?"
    r"(?! (?:siren|signal|beep|tone|horn|call|bell|alarm|growl|hiss|cry|cries|shot)s?\b)",
    r"warn(?:ed|ing|ings) (?:about|against|above|given|not to|in the (?:prompt|instruction))",
    r"(?:the|this|your) (?:instruction|prompt|caption|description|question|request|task)s?",
    r"(?:the|this) (?:video|clip(?!-clop)|footage|audio|recording|soundtrack|image|photo)s?",
    r"(?:the|this|each|every|first|second|last|next|final|single|one) frames?",
    r"(?:in|off|out of|across) frames?",
    r"as (?:instructed|requested|asked)",
    r"(?:(?:to|behind|towards?|near|at) the camera|the camera (?:pans|moves|shows|zooms|follows))",
    r"here(?: is|'s) (?:a|an|the|your) (?:\w+ )?(?:caption|description|paragraph)",
    r"(?:I|we|you) (?:can |could |also )?(?:hear|see|notice)",
    r"(?:caption|answer|output|assistant|user) ?:",
)

_SOUND_STEMS = (
    r"bang|bark|beat|beep|bellow|blar|blast|bleat|boom|bubbl|burbl|buzz|cackl|caw|"
    r"chatter|chim|chirp|chug|clack|clang|clank|clap|clatter|click|clink|clop|clunk|coo|"
    r"cough|crackl|crash|creak|cri|croak|crow|crunch|drip|dron|echo|fizz|grind|groan|"
    r"growl|grunt|gurgl|hiss|honk|hoot|howl|hum|jangl|jingl|knock|laugh|moan|moo|murmur|"
    r"neigh|patter|peal|pluck|pop|purr|quack|rasp|rattl|resonat|reverberat|ring|roar|"
    r"rumbl|rustl|scrap|scratch|scream|screech|shout|shriek|sigh|sing|sizzl|slam|slap|"
    r"slosh|snap|snarl|sneez|snor|snort|splash|splatter|squawk|squeak|squeal|strum|swish|"
    r"swoosh|tap|thrum|thud|thump|thunder|tick|tinkl|toll|toot|trickl|trill|trumpet|"
    r"twang|tweet|wail|warbl|whimper|whin|whir|whirr|whisper|whistl|whoosh|yap|yelp"
)

SOUND_WORDS = (
    rf"(?:{_SOUND_STEMS})(?:[pmngt]?(?:ed|ing)|e?s|e|ies|l?y)?",
    r"sounds?|sounding|nois(?:e|es|y)|audible|hear[ds]?|hearing|loud(?:ly|er)?|quiet(?:ly|er)?|silen(?:ce|t)|muffled",
    r"hollow|metallic|shrill|deep|high-pitched|low-pitched|pitch(?:ed)?|tone|tonal|rhythmic(?:ally)?|percussive",
    r"music|song|melody|speech|speak(?:s|ing)?|talk(?:s|ing)?|voices?|sirens?|engines?|horns?|bells?",
)

VISUAL_WORDS = (
    r"(?:red|blue|green|yellow|orange|purple|pink|brown|black|white|gr[ae]y|colou?r(?:s|ed|ful)?)",
    r"(?:wear(?:s|ing)|dressed|shirt|jacket|dress|blond|bearded)",
    r"(?:visib(?:le|ly)|seen|look(?:s|ing) (?:at|into|up|down|like)|appears? (?:on|in)|shown|depict(?:s|ed))",
    r"(?:foreground|close-up|bright(?:ly)? lit|sunlit|sunny|shadows?|scenery|landscape|logo)",
)


@lru_cache(maxsize=64)
def compiled(patterns: Patterns) -> re.Pattern[str]:
    """One expression for whole words of any pattern; without patterns it matches nothing."""
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b" if patterns else r"(?!)", re.IGNORECASE)


def first_match(patterns: Patterns, text: str) -> str | None:
    """The first words of a text that match, in lower case; None without a match."""
    match = compiled(patterns).search(text)
    return None if match is None else match.group().lower()
