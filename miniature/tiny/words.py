"""Words from which the tiny tokenizer learns its merges: what captions of sounding scenes are made of."""

_FREQUENT = """
a the and of with in on to is are it as by at from for while then over under near into out up down off again
no not you your this that there what which only do hear heard can one two three several some each other first
last sound sounds video audio caption describe background music speech voice noise visible screen
"""

_SCENES = """
accelerates air alarm ambient animal applause approaches background bang bangs bark barks bass beat beats
beep beeps bell bells bird birds blows blue boat bounce bounces bouncing bowl breaks breath bright bubbles
bus buzz buzzes car cat chime chimes chirp chirps circle clap claps clatter clatters clear click clicks clock
close cloud coin cold continuous continuously crack crackle crackles crash crashes creak creaks crowd cry
crying cup dark deep descends dialogue ding distant dog door drip drips drop drops drum drums dull echo
echoes electric empty engine event explosion fades fall falling falls fan fast faint fire flash flashes floor
flute footsteps frame gentle glass grass gray green grinds ground growl guitar gun hammer hand hard harsh
heavy high hiss hisses hit hits hollow horn horse hum hums idle impact impacts insect instrument keyboard
kettle kitchen knock knocks large laugh laughs leaves left light liquid long loud loudly low machine man
melody metal metallic mid moment motor motorcycle moves moving music narration narrator object objects
off-screen once orange paper passes people person phone piano picture pitch plane plastic plays pluck plucks
pop pops pours pulse pulses purple quick quiet quietly rain rapid rattle rattles red repeated repeatedly
reverb rhythm rhythmic right ring ringing rings rises roar roars rock rolls room rotates rough round rubber
rumble rumbles rustle rustles scene scrape scrapes sea sharp short shot shrill silence silent sing singing
siren sirens sky slam slow slowly small soft softly speak speaking speaks spin spins splash splashes square
steady steam steel still stone stops street strikes string strum surface sweeps swing swings switch tap taps
talking tempo thud thuds thunder ticks tick tone traffic train triangle truck tube vehicle vibrates violin
wail wails walks wall warning water wave waves wheel whine whines whirring whistle whistles white whoosh wind
window woman wood wooden words yellow
"""

_INSTRUCTIONS = """
Describe the sounds that belong to this video in one sentence. Listen to the audio and watch the picture.
Name each sounding object, how it sounds and when. Do not mention background music. Ignore speech and
narration that was added afterwards. Do not describe silent objects. Write only what can be heard. Mention
sounds that are heard but not seen.
"""

WORDS = tuple(
    f"{space}{word}"
    for text, weight in ((_FREQUENT, 8), (_SCENES, 2), (_INSTRUCTIONS, 4))
    for word in text.split()
    for space in (" ", " ", "")
    for _ in range(weight)
)
"""One entry per occurrence, as the trainer counts them; mostly with the space before a word."""
