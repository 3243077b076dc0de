r"""Words and patterns of the claim grammar: what can precede a value, follow it, or change it.

    PREFIX    "at least ", "half of "           read with the value after it
    CHANGED   " and a half", " times the old"   read with the value before it
    STOP      "because", "left"                 neither a unit nor the name of something counted

Invariant: each pattern reads one sentence, in time linear in its length.
"""

from __future__ import annotations

import re

from flow_dpo.verify.words import COUNT, SCALE


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NUMERAL = rf"(?:{COUNT}|{SCALE}|hal(?:f|ves)|thirds?|quarters?)"
SPELLED = re.compile(
    rf"(?:\b(?:plus or minus|minus|negative) )?\b(?:a )?{NUMERAL}"
    rf"(?:(?:[ -]|,? and | point | (?:and |of )?an? | of ){NUMERAL})*\b(?! of (?:the|them|us|these|those)\b)",
    re.IGNORECASE,
)
_LABEL = (
    r"(?:\([A-J]\)|(?:(?<=\bis )|(?<=: )|(?<=[*$:\"])|(?<=option )|(?<=choice )|(?<=\bor )|(?<=\band )|\A)[A-J]\)):? ?"
)
PREFIX = re.compile(
    rf"(?:{_LABEL}|\b(?:plus or minus|minus|negative|(?:(?:{NUMERAL} |a )?(?:half|thirds?|quarters?"
    rf"|fifths?)|twice|double|triple|thrice)(?: of)?|at least|at most"
    r"|(?:no )?(?:more|less|fewer|greater|bigger|smaller|larger|higher|lower) than|over|under|above|below"
    r"|(?<!adding )(?<!adds )(?<!add )up to|between"
    r"|(?:sum|product|difference|quotient|square|cube|root|reciprocal|opposite) (?:of|between))(?: the)? )$",
    re.IGNORECASE,
)
LABEL = re.compile(rf"{_LABEL}\Z")
"""The label of a choice before a value: "(B) 24", "C) 25"."""
CHANGED = re.compile(  # what changes the value before it, up to the end of its clause
    r" ?(?:times (?:the|its|his|her|their|that|as|of)\b|(?:raised )?to the\b|and (?:an?|one|two"
    r"|three) (?:half|third|quarter"
    r"|[a-z]+th)s?\b|(?:[a-z]+ )?(?:more|less|fewer|greater) than [a-z]\b|(?:[a-z]+ )?short of\b"
    r"|or (?:something|more|less|fewer|so"
    r"|higher|lower|above|greater)\b"
    r"|(?:[a-z]+ )?at (?:the )?(?:very )?(?:most|least)\b(?! \d)"
    r"|(?:degrees? ?)?(?:(?:celsius|fahrenheit|[cf]) )?below (?:zero|freezing)\b"
    r"|[xyzntk]\b(?! ?=))[^,;.\n()]{0,80}",
    re.IGNORECASE,
)
THEN = re.compile(r"\b(?:so|therefore|thus|hence|which means|meaning)\b(?=[^\n]*\d)", re.IGNORECASE)
SHARED = re.compile(  # "12 for adults, 8 for children"
    r"[ \w]{0,20}? (\(|for |from |to |by |in |if |when )[^,;\d]{1,30}(?:,|;|,? and"
    r"|,? or)(?: and)? \$?(\d[\d.,/]*)(?: \w+)? \1"
)
OPERATES = re.compile(  # words between two values that make one of them: "10 choose 3", "8 apples subtracted from 10"
    r"(?:root|choose|until|versus|vs|mod|(?:to )?(?:the )?power(?: of)?"
    r"|(?:\w+ )?(?:subtracted from|taken (?:away )?from|added to|combined with"
    r"|(?:increased|decreased|reduced|multiplied|divided|raised) (?:by|to)(?: the power(?: of)?)?))"
)
NO_ROLE = re.compile(  # a value that is only near, related or a number: "close to 21", "a multiple of 21", "step 21"
    r"\b(?:almost|nearly|hardly|barely|scarcely|close to|near|multiples? of|factors? of|divisible by|depends on|divides"
    r"|pages?|steps?|parts?|equations?|eq\.|figure|table|problems?|questions?|exercises?|chapter|section|line"
    r"|no\.|after|before)"
    r" (?:the )?[$*\\( ]*$",
    re.IGNORECASE,
)
FRONTS = _words(
    "minus negative half halves third thirds quarter quarters fifth fifths of twice double triple thrice least most "
    "than over under above below to between be maybe perhaps possibly almost nearly hardly barely scarcely near "
    "multiple multiples factor factors by on divides page pages step steps part parts "
    "equation equations eq. figure table "
    "problem problems question questions exercise exercises chapter section line no. after before"
)
"""Every phrase that matters before a value ends in one of these words, or in one of them and "the"."""
GIVES_UP = re.compile(
    r"\b(?:(?:can(?:no|['\u2019])t|could(?:n['\u2019]t| not)|unable to|not able to) (?:be )?"
    r"(?:solve|determine|answer|find)|do(?:n['\u2019]t| not) know|not sure)",
    re.IGNORECASE,
)
PERHAPS = re.compile(r"\b(?:(?:might|may|could)(?: also)? be|maybe|perhaps|possibly) ?[*_$\\(]*$", re.IGNORECASE)
ASSIGNED = re.compile(r"\\?[A-Za-z]+(?:_\w+)? ?=[^=]*")
DOUBT = _words("or could might may maybe perhaps possibly alternatively")
HEDGES = DOUBT | _words(
    "but it its it's can also be is though although then else even either probably as well just i think to both the "
    "answer value result another option and"
)
ARITHMETIC = _words("to through times plus minus of over base mod modulo in divided by less more fewer than out")
VERBS = _words(
    "is are was were be has have had equals equal makes make made gets get got earns earn earned needs need needed "
    "costs cost pays pay paid takes take took spends spend spent will would gives give gave leaves becomes totals "
    "comes come came totals means leaves adds yields "
    "owes should can must receive receives received buy buys bought sell sells sold read reads "
    "it's that's there's he's she's"
)
RESULT = re.compile(  # words that introduce a result after other values: ", so 85", ", leaving 85", "a total of 85"
    r"\b(?:i\.e\.|that is,|namely\b|in other words\b"
    r"|(?:so(?! far\b| that\b| many\b| much\b|-)|therefore|thus|hence|thereby(?! [a-z]+ing\b))\b"
    r"(?! \S{1,9} (?:more|less|fewer)\b)"
    # a total: after a comma, or a rate; but not "12 buses to carry a total of 600", "15 out of a total of 20"
    r"|(?:(?<=[,;\u2013\u2014] )(?:(?!to\b|out\b|of\b|from\b)[A-Za-z]+ ){0,4}?"
    r"|(?<=each )(?:for|in) (?:an? |the )?(?:\w+ )?)total (?:\w+ )?of\b)"
    r"|(?:,|\bthus|\bthereby|\band|[\u2013\u2014]| -) ?(?:now |only |just )?(?:totall?ing|resulting in"
    r"|leaving(?! (?:an? )?remainder\b| [^,.]{0,30}\b(?:left ?over|over|to spare|unused)\b)"
    r"|(?:making|costing|earning)(?! up\b| [^,.]{0,30}\d[^,.]{0,20} (?:each|apiece|per [a-z]+"
    r"|an? (?:day|hour|week|month|year|piece|pound|item))\b"
    r"| \S{1,9} (?:\w+ )?(?:trips|visits|rounds|stops|laps|deliveries)\b| the number of\b)"
    r"|giving(?! [^,.]{0,30}\d[^,.]{0,30} (?:to|away)\b)|amounting to|adding up to|meaning(?= [^\w,]{0,3}\d)"
    r"|bringing|yielding|producing"
    r"|equall?ing|coming to"
    r"|for(?= [^\w,]{0,3}\d(?!\S* (?:minute|hour|day|week|month|year)s?\b)[^,.]{0,30}"
    r" (?:in total|in all|altogether)\b))\b",
    re.IGNORECASE,
)
TIMES = _words("seconds minute minutes hour hours day days week weeks month months year years")
WHICH = _words("the a these those all past last next first same entire")
CONCLUDES = _words("then so therefore thus hence")
EXPLAINS = _words("because since as after before who whose when where while if given unless although though")
LEAD = CONCLUDES | _words(
    "simply just exactly equal equals to approximately about roughly around is are be was indeed clearly a an the of "
    "total only actually number value now still given by that we get have found there they it he she you i both "
    "either sum"
)
STOP = VERBS | CONCLUDES | EXPLAINS | LEAD | _words(
    "been do does did can could should must may might in on at for from with without within during and or but which "
    "whom until than this these those here his her their our my your each every all altogether together left "
    "remaining remain remains more less fewer over not no also too again away times plus minus base mod divided using "
    "between being out into instead correct right final answer good great overall how what why let me hope i'm i've "
    "per"
)  # fmt: skip
NO_NAMES = _words(
    "correct right wrong incorrect clear unclear helpful below above as in found given shown known unknown not that "
    "what going obvious simple needed required asked to for on at ready important based useful satisfactory "
    "acceptable"
)
PLACES = _words(
    "on at when where unless except from between by with without after before since in of to until as nor page step "
    "number part case day year week grade class question problem option statement"
)
"""Words before a number that only locates or numbers something."""
