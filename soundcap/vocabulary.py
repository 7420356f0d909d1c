"""Word lists of the curation rules: regular expressions, matched whole words at a time, in any case.

They hold what a sound caption has no good reason to say. Words that also serve to describe sound are left
out on purpose, or kept only in the company that makes them noise: rain *drums*, elephants *trumpet*, birds
*sing*, a chime is *musical*, a siren is a *warning* siren, hooves go *clip*-clop, a window *frame* rattles.
"""

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

MUSIC_WORDS = (
    r"music(?! box)",
    r"soundtracks?",
    r"jingles? (?:plays?|playing)",
    r"(?:pop|rock|folk|love|dance|theme|upbeat|sad|background) (?:songs?|tunes?|melod(?:y|ies)|beats?)",
    r"(?:song|tune) (?:is playing|plays|playing|in the background)",
    r"singers?",
    r"vocals",
    r"lyrics",
    r"(?:man|woman|men|women|male|female|child|children|girl|boy|people|person|someone|choir|voices?|crowd)"
    r"\b[^.;]{0,25}\bsing(?:s|ing)?",
    r"orchestras?(?:l score)?",
    r"choirs?",
    r"(?:acoustic |electric |bass |steel )?guitars?(?![- ]?like)",
    r"(?:piano|violin|fiddle|cello|harp|flute|clarinet|oboe|bassoon|saxophone|trombone|tuba|accordion"
    r"|harmonica|banjo|mandolin|ukulele|synthesi[sz]er|sitar|tabla|marimba|xylophone|glockenspiel"
    r"|harpsichord)s?(?![- ]?like)",
    r"an? trumpets?(?![- ]?like)",
    r"drummers?|drum ?(?:kit|set|machine|solo)s?|snare drums?",
)

MUSIC_LABELS = (
    r"playing (?!badminton|darts|hockey|lacrosse|squash|table tennis|tennis|volleyball)",
    r"(?:fe)?male singing|child singing|singing (?:choir|bowl)",
    r"rapping|beat boxing|yodelling|tap dancing|tapping guitar|disc scratching|orchestra",
    r"people (?:humming|whistling)|wind chime|ice cream (?:truck|van)|metronome",
)

SPEECH_WORDS = (
    r"speech(?:es)?",
    r"speak(?:s|ing|ers?)?(?! grille)",
    r"spoken|spoke",
    r"talk(?:s|ed|ing)?",
    r"narrat(?:es?|ing|ions?|ors?)",
    r"comment(?:ary|ators?)",
    r"conversations?|conversing|dialogues?",
    r"voice[- ]?overs?",
    r"announce(?:r|rs|ment|ments)",
    r"interviews?",
    r"(?:says|saying|said|explains?|explaining)",
    r"(?:man|woman|male|female|child|girl|boy|person|human|people|someone)(?:'s|s'|’s)? voices?",
)

SPEECH_LABELS = (
    r"(?:fe)?male singing|child singing|singing choir|rapping|beat boxing|yodelling",
    r"people (?:crowd|babbling|whispering|screaming|booing|cheering|battle cry|humming|giggling)",
    r"children shouting|baby babbling|parrot talking|police radio chatter|auctioneer",
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
