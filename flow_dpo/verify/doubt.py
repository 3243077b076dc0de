r"""Doubt about a claim: whether an answer is denied, only supposed or taken back, or the text breaks off before it.

    "42 is wrong", "neither 12 nor 18"             denied
    "Let's assume the answer is", "If the answer"  introduces no answer: `supposes`
    "How many are 7 and 5?", "First she has 12."   claims none: `claims_nothing`
    "The answer is 10. Oops, I meant 12."          10 is taken back
    "So the total is 15 +"                         `breaks_off`

Invariant: a text in doubt gives no answer, because a reward must be earned; patterns look at bounded windows.
"""

from __future__ import annotations

import re

_SIGNS = str.maketrans(dict.fromkeys("*_#,:;.!?()\"'\u2019\u201c\u201d>-$\\{}", " "))


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _words(text: str) -> set[str]:
    return set(text.lower().translate(_SIGNS).split())


WRONG = (
    r"(?:wrong|incorrect|mistaken|false|untrue"
    r"|not (?:quite )?(?:right|correct|the (?:right |correct |final )?answer))\b"
)
_DENIED_BEFORE = re.compile(
    r"(?:\bnot|n['\u2019]t|\bnever|\bcannot|\brather than|\binstead of|\bneither|\bnor|≠|\\neq?"
    r"|\bexcept(?: for)?|\bother than|\bapart from|\bexclud(?:e|es|ing)|\brul(?:e|es|ed|ing) out|\breject(?:s|ing)?"
    r"|\bdiscard(?:s|ing)?|\beliminat(?:e|es|ing)|\banything but|\bfar from|\btorn between|\bany \w+ but"
    r"|\bdiffer(?:s|ent) from)"
    r"(?: be| \w+ly| equals?| to| just| the| that| is| it| have| has| had| get| make"
    r"| give)* ?[*_\"\u201c($\\\[ ]*$",
    re.IGNORECASE,
)
_DENIED_BEHIND = re.compile(
    rf"[\s,*_\"\u201d)$\\\]]*(?:which |that )?(?:(?:is|was|seems|looks|would be|must be|are)(?: \w+ly| also)? {WRONG}"
    r"|(?:isn|wasn|couldn|can)(?:['\u2019]t|not)(?: be)? (?:it|right|correct|the|what)\b"
    r"|(?:is|was|would be|are) (?:too \w+|excluded|ruled out|rejected|impossible|invalid|not (?:possible"
    r"|valid|allowed))\b"
    r"|(?:does|do|will|would|can)(?:n['\u2019]t| ?not) (?:work|satisfy|fit|hold|solve)\b)",
    re.IGNORECASE,
)


_DENYING = _vocabulary(
    "not t never cannot false untrue any differs different rather instead neither nor ne neq except "
    "other apart excluding exclude excludes rule "
    "rules ruled ruling reject rejects rejecting discard discards discarding eliminate eliminates eliminating "
    "anything far torn wrong incorrect mistaken too excluded rejected impossible invalid doesnot"
)


def may_deny(text: str) -> bool:
    """Whether the text has a word that `denied` looks for: a cheap test before looking at each value."""
    return not _DENYING.isdisjoint(_words(text)) or "≠" in text


def denied(text: str, start: int, end: int) -> bool:
    """Whether the text denies the value at a place: "not 42", "42 is wrong"."""
    return bool(_DENIED_BEFORE.search(text[max(0, start - 40) : start]) or _DENIED_BEHIND.match(text[end : end + 80]))


# ---- not introduced as an answer -------------------------------------------------------------------------------------

_CLAUSE = re.compile(
    r"[.!?\n,;:\u2014]|\b(?:so|then|therefore|thus|hence|but|and|because|since|see|shows?|means)\b",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:no (?:way|chance|reason)|not|never|cannot|nobody|no one|wrong|incorrect|false|untrue|impossible|mistake"
    r"|mistaken|doubt|doubtful|den(?:y|ies)|den(?:y|ies)|assum(?:e|ing)|suppos(?:e|ing)|imagine|pretend|if"
    r"|whether|unless"
    r"|until|might|may|could|would (?:say|think|guess|conclude)|tempt(?:ed|ing)|guess(?:ed)? that|some|people"
    r"|everyone)\b|n['\u2019]t\b|^\W*(?:is|was)\b",
    re.IGNORECASE,
)


_SUPPOSING = _vocabulary(
    "way chance reason not never cannot nobody one wrong incorrect false untrue impossible mistake mistaken doubt "
    "doubtful deny denies assume assuming suppose supposing imagine pretend if whether unless until might may could "
    "say think guess guessed conclude tempted tempting some people everyone is was t"
)
"""Every clause that only supposes has one of these words."""


def supposes(text: str, start: int) -> bool:
    """Whether the words before a place deny or only suppose what begins there ("the answer is 20"), in its clause."""
    before = text[max(0, start - 80) : start]
    if _SUPPOSING.isdisjoint(_words(before)):
        return False
    clause = before
    for end in _CLAUSE.finditer(before):
        clause = before[end.end() :]
    if re.search(r"\b(?:no|without (?:a )?) ?doubt|\bnot (?:hard|difficult|surprising)", clause, re.IGNORECASE):
        return False
    return bool(_SUPPOSED.search(clause))


_TASK = (
    r"(?:find|know|comput|calculat|determin|add|subtract|multipl|divid|solv|figur|work out|check|see|consider|count"
    r"|evaluat|simplif|prov|show|answer)(?:e|y)?\b"
)
_NO_CLAIM = re.compile(
    r"[\W_]{0,9}(?:step \d+[.:)]? ?)?(?:(?:so|now|next|then|but|well|okay|ok|hmm|and|also)\b[,.:]? )?(?:please )?(?:"
    r"(?:find|determine|calculate|compute|solve|evaluate|simplify|multiply|add|subtract|divide|prove|show that|given"
    r"|suppose|assume|consider|recall|note that|imagine|pretend|try|ignore|disregard|forget|guess|use|using|count)\b"
    r"|let(?:[\u2019']s| us| me)? (?:assume|suppose|try|say|call|denote|define|take|consider|guess|start|pretend"
    r"|[a-z]\b|\$)"
    r"|(?:at )?first(?:ly)?\b|to (?:begin|start)|initially|originally|so far|step (?:1|one)\b|next step"
    r"|(?:how|what (?:is|are|was|were|will|would|do|does|did))\b|(?:the )?(?:question|problem|task"
    r"|exercise)\b(?!\s+is\s+\d))"
    rf"|.{{0,200}}?\b(?:(?:need|needs|want|wants|have|has|going|try|trying|left|asked|supposed|required"
    rf"|remains) to {_TASK}"
    r"|(?:we|i) (?:know|(?:want|need) the)|(?:question|problem|task|it) (?:asks|states|says|tells|gives us|wants)"
    r"|(?:we|i|you)(?: are|[\u2019']re| were| am) (?:told|given|asked)|(?:are|[\u2019']re|am) (?:looking|trying)"
    r"|what (?:is|are|was)\b(?! left)|how (?:many|much|far|long|old|tall|fast))\b",
    re.IGNORECASE | re.DOTALL,
)
_REFUSES = re.compile(
    r"\b(?:no (?:way|chance)|no one|nobody|(?<!no )(?<!a )doubt (?:that|the|it|if)|(?:impossible|wrong"
    r"|incorrect|false|untrue|mistake|not true|not the case) (?:that|to)"
    r"|(?:ignore|disregard|forget) (?:the|that|my|what)|not (?:think|believe|saying|claiming))\b"
    r"|n[\u2019']t (?:think|believe|say|mean)\b|\b(?:tempting to|one might|common (?:mistake|error)|by no means"
    r"|under no circumstances|(?:initially|first|originally|previously) (?:thought|said|got|found|guessed)"
    r"|(?:might|may|could) (?:say|think|answer|guess)|would be\b(?=[^.]{0,200}\bif\b)|(?:if"
    r"|assuming)\b[^.]{0,200}\bwould be)\b",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"=|\b(?:to get|to find|we (?:get|have|find|obtain)|gives?|giving|which (?:is|makes|means|gives|equals)|yields?"
    r"|(?:so|therefore|thus|hence|then)\b|equals|makes|is|are|that[\u2019']s|result)\b[^?]*\d",
    re.IGNORECASE,
)


_TRIGGERS = _vocabulary(
    "find determine calculate compute solve evaluate simplify multiply add subtract divide prove show given "
    "suppose assume consider recall note imagine pretend try ignore disregard forget guess use using count let "
    "first firstly begin start initially originally far step next how what question problem task exercise need "
    "needs want wants going trying left asked supposed required remains asks states says tells told looking way "
    "chance one nobody doubt impossible wrong incorrect false untrue mistake not true t tempting might may could "
    "common under means previously if assuming know"
)
"""Every sentence that claims nothing and is no question has one of these words, or "to" with "have" or "has"."""


def claims_nothing(sentence: str) -> bool:
    """Whether a sentence is a question, a task ("find the cost of 12 pens") or a first step, rather than a claim."""
    if sentence.rstrip(" \t\r\n*_\"'\u201d)$").endswith("?"):
        return True
    words = _words(sentence)
    if _TRIGGERS.isdisjoint(words) and ("to" not in words or not ("have" in words or "has" in words)):
        return False
    refuses = _REFUSES.search(sentence)
    if refuses:
        return not re.search(r"\b(?:but|however|actually)\b[^?]*\d", sentence[refuses.end() :], re.IGNORECASE)
    found = _NO_CLAIM.match(sentence)
    if found is None:
        return False
    if re.match(r"\W*(?:(?:at )?first|initially|originally|so far|to (?:begin|start)|step|let|suppose|assume|if)\b",
                sentence, re.IGNORECASE):  # fmt: skip
        return not re.search(
            r",? (?:so|therefore|thus|hence|then|in total|in all|altogether|finally|overall)\b[^?]*\d",
            sentence,
            re.IGNORECASE,
        )
    if _REPORTED.search(found[0]):
        return not (_CONCLUSION.search(sentence, found.end()) or _concludes(sentence))
    return not _RESULT.search(sentence, found.end())


_REPORTED = re.compile(
    r"\b(?:know|want|need the|what|how|given|told|asked|asks|states|says|tells|wants|problem|question"
    r"|suppose)\b",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"(?:=|:|\b(?:so|therefore|thus|hence|then|we get|gives|it is)\b)[^?]*\d", re.IGNORECASE)


def _concludes(sentence: str) -> bool:
    """Whether a sentence states something after what is given: "Given that there are 5 boxes of 17, there are 85."."""
    given, _, clause = sentence.rpartition(", ")
    return bool(_GIVEN.match(given)) and not _TASKED.match(clause) and _STATED.search(clause) is not None


_GIVEN = re.compile(r"\W*(?:so |now |and )?given\b", re.IGNORECASE)
_TASKED = re.compile(r"(?:and|find|what|how|calculate|determine|compute|we (?:need|want))\b", re.IGNORECASE)
_STATED = re.compile(r"\b(?:is|are|has|have|gets?|costs?|makes?|needs?|equals?|will|would)\b[^?]*\d", re.IGNORECASE)
_NEXT = re.compile(r"\W*(?:now|next|then|after that)\b,? (?:we|i|you|let)\b", re.IGNORECASE)


def plans_on(text: str) -> bool:
    """Whether a text without numbers continues with a task: "Now add the second day's."."""
    found = _NO_CLAIM.match(text) or _NEXT.match(text)
    return bool(found) and not re.search(
        r"\A\W*(?:which|who|where|when|note|please)\b|\b(?:let me know|hope|feel free|make sense)\b",
        text,
        re.IGNORECASE,
    )


# ---- taken back -----------------------------------------------------------------------------------------------------

_SUBJECT = r"(?:that|this|it|which|(?:the|my) (?:[a-z]{4,8} )?(?:answer|result|value|calculation))"
_TAKEN_BACK = re.compile(
    rf"(?<!\bif )(?<!whether )(?<!unless )(?<!in case )\b{_SUBJECT}"
    rf"(?:(?:[\u2019']s| is| was| seems| looks| must be)(?: \w+ly| also)? (?:a mistake|an error|a contradiction"
    rf"|impossible|absurd|invalid|not possible|{WRONG})"
    r"|(?: is|was)n[\u2019']t (?:right|correct|it|possible|valid)\b| can(?:not|[\u2019']t) be (?:right|correct)\b"
    r"| contradicts?\b| violates?\b|(?: does|did)(?:n[\u2019']t| not) "
    r"(?:work|make sense|match|fit|add up|satisfy|look|seem|hold|check)\b)"
    r"|\b(?:scratch that|strike that|never ?mind|correction:|let me correct|i (?:made|see) (?:a|an|my) (?:\w+ )?"
    r"(?:mistake|error)|(?:my|a) mistake\b|my bad|i was wrong|on second thought"
    r"|i (?:forgot|meant?|mis\w+|overlooked|missed|should have|neglected|wrongly|mistakenly|accidentally)"
    r"|(?:(?<=[.!?,] )|(?<=\n)|(?<=\n[*_])|(?<=\n[*_]{2}))"
    r"(?:actually|rather|edit|update|or rather|i mean|sorry)[:,]?[*_]{0,3}[:,]?"
    r"(?= (?:it(?: is|[\u2019']s) |that(?: is|[\u2019']s| should be) "
    r"|(?:the|my) (?:\w+ )?(?:answer|result|value|total) is )?[$*\\(]{0,4}\d)"
    r"|(?<=\d), no,? (?=[$*\\(]{0,4}\d)|make that\b|on reflection|i (?:now )?reali[sz]e|although i should"
    r"|it should read|is what an? (?:\w+ )?(?:reader|student)|but (?:that|this|it) (?:ignores|neglects"
    r"|leaves out|forgets|misses)|(?<=[.!?] )in fact,?(?= it(?: is|[\u2019']s) [$*]{0,3}\d)|(?:perhaps|maybe"
    r"|probably) not\b|(?:let me|i[\u2019']ll"
    r"|i will|i(?: need| have) to|let[\u2019']s) (?:redo|recompute|recalculate"
    r"|reconsider|start over|try again|fix)|(?:it|that|this|answer) should(?: have| actually| instead"
    r"| really)* (?:be|been)"
    r"|(?:but|actually,?|no,) (?:it|that)(?:[\u2019']s| is) (?:actually|really)|apologies|oops|whoops"
    r"|so there (?:is|are) no (?:\w+ )?(?:solutions?|answers?)"
    r"|(?:not|n[\u2019']t be) (?:\w+ly |so |quite |very |too )?(?:sure|certain|confident)\b|unsure|(?:a|just"
    r"|only|wild) guess(?:ing)?\b"
    r"|(?:could|may|might|can|am|i[\u2019']m|probably|likely) (?:be |probably |well |be very )*(?:wrong"
    r"|mistaken|off)\b|as likely|give or take"
    r"|(?<=\d )or so\b|(?<=\d)-?ish\b"
    r"|(?:i )?take (?:it|that) back|(?:ignore|disregard) (?:that|this|the above|my|what)"
    r"|(?:no,? wait|(?:wait|actually|oops|sorry|hmm),? no)\b[,.]?)"
    r"|\?\s{1,3}(?:nope|wrong|incorrect|no)\b|[?.!]\s{1,3}no[,.:!\u2014\u2013-] ?(?=[^.\n]{0,60}\d)",
    re.IGNORECASE,
)
_SECOND_THOUGHTS = _DENYING | _vocabulary(
    "scratch strike never nevermind correction mistake error bad contradiction absurd "
    "contradict contradicts violate violates thought forgot mean meant overlooked missed should neglected wrongly "
    "accidentally make redo recompute recalculate reconsider start try fix actually really apologies oops whoops "
    "no nope unsure guess guessing sure certain confident off likely take ignore disregard wait sorry "
    "edit update perhaps maybe probably back did does didn doesn"
)
"""Most phrases that take an answer back have one of these words; `_PARTS` covers the others."""
_PARTS = (
    "In fact",
    "reflection",
    "reali",
    "gnores",
    "neglects",
    "leaves out",
    "forgets",
    "misses",
    "what a",
    "ish",
    " mis",
    "≠",
    " or so",
    "or take",
    "old on",
    "ang on",
)
_WAIT = re.compile(r"\b(?:wait|hold on|hang on)\b", re.IGNORECASE)
_AFFIRMED = re.compile(
    r"\b(?:yes|correct|right|indeed|confirms?|confirmed|match(?:es)?|holds|works|fine|good|consistent|ok|okay|checks"
    r"|stands|verified|same|true)\b|[\u2713\u2705\u2714]",
    re.IGNORECASE,
)


def taken_back(text: str, at: int, answer: str) -> int:
    """The position after the words that take back an answer read at `at`; -1 if there are none."""
    window = text[at : at + 4_000]
    words = _words(window)
    if _SECOND_THOUGHTS.isdisjoint(words) and not any(part in window for part in _PARTS):
        return -1
    found = -1
    for match in _TAKEN_BACK.finditer(window):
        found = at + match.end()
    again = -1
    denies = not _DENYING.isdisjoint(words) or "≠" in window
    while denies and found < 0 and len(answer) < 40 and (again := window.find(answer, again + 1)) >= 0:
        if denied(window, again, again + len(answer)):
            found = at + again + len(answer)
    if found < 0:
        wait = _WAIT.search(window)
        if wait and not _AFFIRMED.search(window, wait.end()):
            return at + wait.end()
    return found


# ---- cut ------------------------------------------------------------------------------------------------------------

_OPERATORS = frozenset("+\u00d7÷/<(,\u2212=")
_OPEN_ENDS = frozenset(["-", "\u2013", "\u2014", "*", "\\times", "\\cdot", "\\div", "\\frac", "\\pm"])
_OPEN_WORDS = _vocabulary(
    "is are was were be equals of by the a an and or than from plus minus into per because since if his her "
    "their its our your we they divided multiplied multiply subtract add adding subtracting dividing divide to "
    "with at which buys sells costs but gives makes so then therefore he she where as while about another"
)


def breaks_off(text: str) -> bool:
    """Whether a text ends inside a calculation or a sentence: "15 +", "multiply 6 by", "so the answer is"."""
    tail = text[-200:].rstrip(" \t\r\n$`~")
    words = tail.rsplit(maxsplit=2)
    if len(words) > 1 and words[-1] in _OPEN_ENDS and words[-2][-1] not in "*-":
        return True
    tail = tail.rstrip("*_ ")
    if tail[-1:] in _OPERATORS and tail[-2:] != "==":
        return len(tail) > 1
    before, _, last = tail.rpartition(" ")
    if last == "have" and before.endswith((" will", " would")):
        return True
    if last in _OPEN_WORDS and before[-1:].strip():
        return last not in ("is", "a") or not before[-4:].removesuffix(" it").strip()[-1:].isdigit()
    bracket = tail.rfind("(")
    return bracket >= 0 and tail.find(")", bracket) < 0 and _REMARK.fullmatch(tail, bracket) is not None


_REMARK = re.compile(r"\([^\n\]]{0,60}[A-Za-z]{2}[^\n\]]*")
