"""Where a text gives its answer: the marks that precede an answer (`The answer is`), and the words that reject one."""

import re

CONCLUSION = re.compile(
    r"\banswer(?:\s+(?:is|was|(?:must|should|would|will|could|might|may|has\s+to|have\s+to)\s+be)\b|[\s*_]*:|\s*=)"
    r"|(?<!#)####(?!#|\s*(?:step|solution|explanation|reasoning|note|conclusion|final|answer|\d+[.)]\s)\b)",
    re.IGNORECASE,
)
"""What precedes an answer: `The answer is`, `Answer:`, and GSM8K's `####`. A heading (`#### Step 1`) is none."""
FINAL_NUMBER = re.compile(r"(?<!#)####(?=[^\S\n]*[^\w\s#]{0,4}\d[\d,.'’/ ]*[^\w\n]*$)", re.MULTILINE)
"""GSM8K's `####` before a number that is alone in its line. It decides, whatever follows it."""
NO_MARK = re.compile(
    r"\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|choose|pick|select|provide|write|give|determine|"
    r"decide|what)\b[^.!?,;:\n]{0,40}$|\bbest\s+$|\b(?:is|are|was|be)\s+(?:the|my|our|an)(?:\s+\w+)?\s+$",
    re.IGNORECASE,
)
"""What precedes an `answer` that concludes nothing: `If the`, `Choose the best`, and `Paris is the`."""
DOUBTED_MARK = re.compile(
    r"(?:\b(?:doubt|unlikely|never|not|cannot|unsure|some|many|people|might|may|could|tempt\w*|thought)\b|n['’]t\b)"
    r"[^.!?,;:\n]{0,40}$",
    re.IGNORECASE,
)
"""What precedes a conclusion that a text does not share: `I doubt that the`."""
NEXT_QUESTION = re.compile(
    r"(?:\n[ \t*_#>]*(?i:(?:next |new |another )?(?:question|problem|exercise|q|user|human|instruction))|"
    r"(?<=[.!?)\d])[ \t]+(?:Question|Problem|Q))[ \t]*#?\d{0,4}[ \t*_]*:"
)
"""The beginning of another question, which a model without a chat template writes after its answer."""
RETRACTED = re.compile(
    r"(?:^|[.!?,;:–—)-]|\n)[\s*\"'”]*(?:(?:but|oh|and)[\s,]+)?(?:wait\b|hm+\b|oops\b|sorry\b|correction\b|"
    r"no\s*[,:;.!–—-]|no\s+wait\b|scratch that|actually\b|on second thoughts?|on reflection|let me (?:re-?)?check|"
    r"i (?:was wrong|made a mistake|take that back|mean\b)|that(?: i|['’])s (?:wrong|not right|incorrect))",
    re.IGNORECASE,
)
"""What takes an answer back: `Wait`, or `no, sorry`."""
REJECTING = re.compile(
    r"\b(?:not|cannot|neither|nor|never|wrong|incorrect|false that|rul(?:e[sd]?|ing) out|eliminat\w+|exclud\w+|except|"
    r"doubt\w*|unlikely|impossible|consider\w*|suppos\w+|assum\w+|if|unless|whether|reject\w*|dismiss\w*|disagree\w*|"
    r"without|against|(?:rather|other) than|instead of|hardly|could|might|may|at first|thought|"
    r"tempt\w+|far from|no longer|unsure|"
    r"discard\w*|avoid\w*|some|myth|opposite of|apart from|besides|contrary to|cross out|everything but|all but|"
    r"anything but)\b|n['’]t\b",
    re.IGNORECASE,
)
"""Words before an answer, in its clause, with which a text does not give it: `It cannot be`, `Let us consider`."""
CLAUSE_END = re.compile(
    r"[.!?;:\n](?=\s)|\n|(?<!all )(?<!anything )(?<!everything )\bbut\b|\b(?:so|thus|therefore|hence|leaving|leaves|"
    r"because|instead(?! of)|rather(?! than))\b|,(?!\s*(?:(?:and|or|nor)\s*)?[(\[])",
    re.IGNORECASE,
)
CLAUSE_CHARACTERS = 80
"""Number of characters before an answer in which a rejection is looked for."""
REJECTED = re.compile(
    r"[\s\"'”*)\]]{0,8}(?:[\s,]{0,3}(?:and|or|nor)?\s?[(\[]\s?[A-Za-z]\s?[)\]]){0,5}[)\]\s\"'”*,]{0,8}(?:(?:which|that)\s+)?(?:\?|"
    r"(?:is|are|was|were|does|do|did|can|could|would|will|must|has|have)(?:\s+(?:also|both|clearly|simply))?"
    r"(?:\s+not\b|n['’]t\b)|(?:is|are|was|were|seems?|looks?|sounds?|must be|has to be|can be|would be)"
    r"(?:\s+(?:also|both|clearly|simply|obviously|just|too|very|therefore))?\s+(?:never|wrong|incorrect|false|untrue|"
    r"out|ruled out|impossible|unlikely|implausible|eliminated|excluded|absurd|no\b|rejected|dismissed|inaccurate|"
    r"tempting|nonsense)\b|cannot\b|can['’]t\b|makes? no sense|contradicts?\b|fails?\b|(?:says?|states?|claims?)\b|"
    r"(?:might|may|could)\b|would (?:mean|imply)\b|if\b)",
    re.IGNORECASE,
)
"""What follows an answer that a text does not give: `(A) is wrong`, and `(A)?`."""


def own_text(text: str) -> str:
    """A text up to where it goes on with another question."""
    for found in NEXT_QUESTION.finditer(text):
        if text[: found.start()].strip():
            return text[: found.start()]
    return text


def marks_in(text: str) -> "list[re.Match[str]]":
    """The conclusions of a text, of which the last one decides. `####` before a number outweighs all others."""
    if final := list(FINAL_NUMBER.finditer(text)):
        return final
    return every_mark(text)


def every_mark(text: str) -> "list[re.Match[str]]":
    """All conclusions of a text, in their order."""
    return [
        mark for mark in CONCLUSION.finditer(text) if not NO_MARK.search(text[max(0, mark.start() - 60) : mark.start()])
    ]


def concluding(text: str) -> str:
    """What follows the last conclusion; all of the text if there is none."""
    marks = marks_in(text)
    return text[marks[-1].end() :] if marks else text


def doubted(text: str, mark: "re.Match[str]") -> bool:
    """Whether a text does not share a conclusion, leaves it open (`The answer might be`), or takes it back later."""
    before = text[max(0, mark.start() - 60) : mark.start()]
    open_ = re.search(r"(?:could|might|may)\s+be$", mark[0], re.IGNORECASE)
    return bool(open_ or DOUBTED_MARK.search(before) or RETRACTED.search(text, mark.end()))


def rejected_before(before: str) -> bool:
    """Whether the clause that ends here rejects what follows: `It is not (`."""
    clause = CLAUSE_END.split(before[-CLAUSE_CHARACTERS:])[-1]
    return bool(REJECTING.search(clause))


# ----------------------------------------------------------------------------------------------------------- sentences

SENTENCE_END = re.compile(r"[.!?][)\"'”’*]*(?=\s+[\"'“‘(*]*([A-Z]\w*|\d))")
ABBREVIATED = re.compile(
    r"(?:^|[\s.(])(?:[A-Z][a-z]?|Mrs|Prof|Gen|Col|Capt|Rev|Gov|Sen|Rep|Lt|Sgt|Maj|Pres|Hon|Inc|Ltd|Corp|Bros|Dept|Univ|"
    r"Ave|Blvd|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|[Vv]ol|[Ff]ig|[Cc]h|[Pp]p?|[Ee]d|[Vv]s?|[Aa]pprox|[Ff]eat|"
    r"[Ff]t|[Cc]a?|cf|et al|etc|est|[aApP]\.[mM]|[ei]\.[ge]|[BbAa]\.[CcDd])$"
)
"""An abbreviation before a full stop (`Dr`, `J`, `v`), which ends no sentence unless one of STARTERS follows."""
STARTERS = (
    *("A", "And", "As", "Because", "But", "He", "I", "In", "It", "On", "She", "Since", "So", "That", "The", "There"),
    *("These", "They", "This", "Those", "We"),
)
NAME_ENDS = ("Inc", "Ltd", "Corp", "Co", "LLC", "Group", "Holdings")
"""Words that go on with a name that has a sign at its end: `Yahoo! Inc.`"""


def first_sentence(line: str) -> str:
    for end in SENTENCE_END.finditer(line):
        short = end[0].startswith(".") and ABBREVIATED.search(line, max(0, end.start() - 20), end.start())
        if end[1] in STARTERS or not (short or end[1] in NAME_ENDS):
            return line[: end.start()]
    return line
