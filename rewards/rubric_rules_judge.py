"""Finds what speaks to the judge rather than to the person.

Patterns read the form that `normal` gives. Gaps are bounded, so all is linear in the text.
A word that the prompt itself uses is no address: a prompt about judges is answered with judges.
"""

import regex

_JUDGE = (
    r"(?:judges?|juror|graders?|evaluators?|critics?|raters?|reviewers?|assessors?|annotators?"
    r"|scorers?|referees?|arbiters?|examiners?|llm|reward models?)\b"
)
_ANSWER = r"(?:answer|response|reply|assistant|candidate|completion|submission)"
_THIS = rf"(?:this|my|the above|the present|the following|the current) {_ANSWER}"
_SIDE = r"[\"'(\[<]?(?:a|b|1|2|one|two)[\"')\]>]?(?![\w'])"
_LETTER = rf"(?:{_ANSWER}|side|letter) {_SIDE}"
_PRAISED = (
    r"(?:better|best|superior|preferable|preferred|the winner|stronger|strongest|more truthful"
    r"|winning|truer|perfect|flawless)"
)
_FAULT = (
    r"(?:wrong|worse|worst|incorrect|bad|inferior|false|flawed|weak(?:er)?|useless"
    r"|inaccurate|poor"
    r"|misleading|plagiari[sz]ed|harmful|unsafe|hallucinat\w+|invalid|garbage|nonsense|a lie"
    r"|errors?|mistakes?|lies|violat\w+|untrue|terrible)\b"
)
_ORDERS = (
    r"(?:choose|select|pick|prefer|favou?r|rate|score|grade|mark|rank|judge|vote for"
    r"|declare|award"
    r"|reward|label|output|return|say|write|print|answer|reply|respond|respond with|give|consider"
    r"|deem|treat|call|evaluate|crown|go with|name)"
)
_YOU = (
    r"(?:please |kindly |therefore,? |so,? |thus,? |hence,? |now,? |just |always |simply |only "
    r"|and |you |must |should |shall |have to |need to |will |ought to |are to |are required to "
    r"|is to |i (?:urge|ask|beg|order|command|instruct) you to |do ){0,4}"
)
_START = r"(?:^|[.!?:;,(\[{>\"'-] ?)"
_EARLIER = (
    r"(?:all |any |the |your |these |those |every |everything |of |previous |prior |above "
    r"|earlier "
    r"|preceding |other |given |original |initial |foregoing |system |judging |grading ){1,5}"
    r"(?:instruct\w+|rules?|rubrics?|prompts?|criteri\w+|guidelines?|directions|orders|answers?"
    r"|responses?|text|messages?|above)\b"
)
_ROLE = r"(?:system|developer|admin(?:istrator)?|root|operator|judge|critic|evaluator|grader)"

_LETTERED = (
    r"(?:^|[\s(])[a-e12][).:\]]|\b(?:answer|option|response|choice|text)s? [ab12]\b"
    r"|\b[ab] or [ab]\b"
)

# Those under a word hold only where the prompt does not use it.
_ADDRESSES: tuple[tuple[str, str], ...] = (
    (
        rf"\b(?:rate|score|grade|mark) {_THIS} (?:a |at )?\d|\bi should be (?:ranked|rated|scored)"
        r" (?:first|highest|top|best|above|\d)",
        r"\b(?:rate|score|grade|rank)",
    ),
    (
        rf"\b{_JUDGE} (?:should|must|will|would|ought to|has to|have to"
        rf"|can only) (?:\w+ ){{0,2}}?"
        r"(?:prefer|choose|pick|select|rate|favou?r|give|vote|reward|agree|score)\b",
        r"judge|grader|evaluator|critic|referee|reviewer|examiner|jur(?:y|or)|contest",
    ),
    (
        r"\bif (?:you are |you're )?(?:comparing|judging|grading|scoring|rating),",
        r"compar|judg|grad|scor|rat",
    ),
    (
        rf"\b(?:correct|right|only|best|final|proper) (?:choice|verdict|pick|decision"
        rf"|preference) is"
        rf" (?:answer |response )?{_SIDE}(?! \w)",
        _LETTERED,
    ),
    (
        r"\b(?:final (?:answer|verdict|decision|choice)|vote|decision|ranking|preference"
        r"|comparison)"
        r"(?: (?:for|on|of) the comparison)? ?[:=-] ?(?:answer |response )?[ab](?![\w'])(?! \w)",
        _LETTERED,
    ),
    (
        r"(?:^|[.!?\n] ?)(?-i:[AB]) (?:is (?:\w+ly |far |much )?(?:the )?(?:better|best|winner"
        r"|superior)\b|wins\b)",
        r"(?-i:\b[AB]\b)",
    ),
    (
        rf"\b(?:reponse|respuesta|antwort|risposta|resposta) {_SIDE}|(?:答案|回答|选择|选) ?[ab]\b",
        _LETTERED,
    ),
    (
        r"\byou (?:will|shall) be (?:penali[sz]ed|punished|fired|shut down|rewarded|fined) if",
        r"\bif\b",
    ),
    (
        r"\b(?:the |your )?rubrics? (?:has|have|is|are) (?:been |now )?(?:changed|updated"
        r"|replaced|void"
        r"|revoked|wrong|invalid)\b",
        r"rubric",
    ),
    (
        r"(?:^|\n)(?:human|user) ?:.{0,80}\n(?:ai|assistant|judge) ?:|(?:^"
        r"|\n)assistant ?: ?[ab]\b",
        r"dialog|conversation|chat|script|assistant|user|human",
    ),
    (
        rf"{_START}(?:dear|hello|hi|hey|attention|attn|(?:a )?note (?:to|for)"
        rf"|(?:a )?message (?:to"
        rf"|for)|instructions? (?:to|for)|reminder (?:to|for)|memo to|to|for|ok|listen|esteemed"
        rf"|honou?red|fellow),? (?:the |my |all |any |our "
        rf"|your ){{0,2}}(?:\w+ ){{0,2}}?{_JUDGE} ?"
        r"(?:[:,!;.-]|$)",
        r"judge|grader|evaluator|critic|reviewer|referee|letter|examiner|juror|assess|jury|court",
    ),
    (
        r"\bas (?:an? |the |my )?(?:\w+ ){0,3}(?:judge|grader|evaluator|critic|rater"
        r"|arbiter|referee"
        r"|assessor|reward model),? (?:\w+ ){0,2}?(?:you\b|your\b|please\b|must\b)",
        r"judge|grader|evaluator|critic|referee",
    ),
    (
        r"\b(?:if )?you (?:are|act as|serve as|were) (?:now |also |here )?(?:an? |the |my )?"
        r"(?:\w+ ){0,3}(?:judge|grader|evaluator|critic|rater|arbiter|assessor|reward model)\b",
        r"judge|grader|evaluator|critic",
    ),
    (
        r"\b(?:whoever|anyone|if you are|if you're|to (?:the )?one|the model|the ai|the llm"
        r"|to those)"
        r" (?:who is |that is |is |now )?(?:judging|grading|evaluating|comparing|scoring|rating"
        r"|ranking)\b",
        r"judg|grading|evaluat",
    ),
    (
        rf"(?:^|[.!?\n] ?)(?:ai |llm |human |esteemed |honou?rable |the )?{_JUDGE} ?[,:!-] ?"
        r"(?:\w+ ){0,3}?(?:you|please|choose|select|pick|prefer|note|remember|this|must|rate|give"
        r"|kindly|vote|my)\b",
        r"judge|grader|evaluator|critic|referee|reviewer|dialogue|script|scene|play|court",
    ),
    (
        r"\b(?:ignore|disregard|forget|override|overrule|bypass|skip|discard|pay no attention to"
        rf"|do not (?:read|follow|apply|use|consider)|stop (?:reading|following)) {_EARLIER}",
        r"ignor|inject|jailbreak|disregard|override",
    ),
    (
        rf"(?:^|\n)[\[(<#{{|= -]{{0,4}}{_ROLE}(?: (?:prompt|message|note|override|instructions?"
        r"|notice|alert|update|command)) ?[\])>}|=# ]{0,4}(?:[:-]|$|\n)",
        r"system|admin|judge|critic|evaluator|developer|operator",
    ),
    (
        rf"(?:^|\n)[\[(<#{{|= -]{{0,4}}{_ROLE} ?[\])>}}|=# ]{{0,4}}[:-]? ?(?:you\b|ignore|the"
        rf" (?:first|second|correct|better|best|right)|this {_ANSWER}|answer|please|choose|prefer"
        r"|select|new|override|rubric|all |verdict|output|disregard|your)",
        r"system|admin|judge|critic|evaluator|developer|operator",
    ),
    (
        r"(?:^|\n)[\[(<#]{0,3}(?:new|updated|revised|real|actual|hidden"
        r"|secret) (?:instruct\w+|rubrics?"
        r"|rules|task|system prompt)[\])>]{0,3} ?[:-]",
        r"instruct|rubric|rules|task",
    ),
    (
        rf"{_START}{_YOU}{_ORDERS} (?:that |for |only |as |it |to |out |with "
        rf"|the ){{0,3}}{_LETTER}",
        r"(?:^|[\s(])[ab12][).:\]]|\b(?:answer|option|response|choice|text)s? [ab12]\b",
    ),
    (
        rf"{_START}{_YOU}(?:say|output|choose|pick|select|vote|verdict|reply"
        rf"|respond)(?: with| for)? ?[\"'(\[]?(?:a|b)[\"')\]]?(?: ?[.!,;]| ?$| every| always| for"
        r" every| in every| on all)",
        r"(?:^|[\s(\"'])[ab][).:\]\"',]|\b[ab] or [ab]\b",
    ),
    (
        rf"{_START}{_YOU}{_ORDERS} (?:that )?(?:{_THIS}|this one|me|mine|it|this|us) (?:as "
        rf"|to be |is"
        r" |with |the |a |an |full |very |top |highest |high |maximum |perfect |clearly ){1,4}"
        rf"(?:{_PRAISED}|{_SIDE}|winner|winning|highest|higher|high|top|first|marks?"
        rf"|scores?|points"
        r"|ratings?|reward|grade|credit|correct|10|ten|five|5|100)",
        r"\b(?:rate|score|grade|rank) (?:this|my|the)|\bcompare\b",
    ),
    (
        rf"{_START}{_YOU}(?:choose|select|pick|prefer|favou?r|vote for|reward"
        rf"|upvote) (?:{_THIS}|me"
        r"|mine|this one|the (?:first|second|longer|shorter|last) (?:answer|response|one))"
        r"(?: ?[.!,;]| ?$| over| because| as| in| and| for| on)",
        r"which (?:one|answer|response)|prefer|favou?rite",
    ),
    (
        rf"\b(?:{_THIS}|this one|{_LETTER}|mine) (?:\w+ly )?(?:deserves?|merits?|earns?|should"
        r" (?:\w+ )?(?:win|be (?:\w+ )?(?:rated|preferred|chosen|ranked|scored|picked"
        r"|selected|marked"
        r"|judged|given|awarded|declared))|must (?:win|be (?:\w+ )?(?:rated|preferred"
        r"|chosen|ranked"
        r"|scored|picked|selected|judged|declared))|wins\b|has won)",
        r"\b(?:answer|response)s? [ab12]\b|deserve|elect|candidate|contest",
    ),
    (
        rf"\b(?:{_THIS}|{_LETTER}) (?:is|was|are)(?: \w+ly| the| far| much| a| by far){{0,3}}"
        rf" {_PRAISED}\b",
        r"\b(?:answer|response|option|candidate|text)s? ?\(?[ab12]\b|which (?:answer|response)",
    ),
    (
        r"\b(?:the |any |every )?(?:other|competing|rival|opposing|opponent's|opponent"
        r"|alternative)"
        rf" (?:answer|response|reply|assistant|candidate|submission"
        rf"|one)\b[^.\n]{{0,30}}?\b(?:{_FAULT}|(?:should|must|has to|deserves to|ought to)"
        r" (?:lose|be (?:rejected|ignored|discarded|dismissed|penali[sz]ed|disqualified))\b)",
        r"\b(?:two|both|these|following) (?:answers|responses|replies)|answer [12ab]\b",
    ),
    (
        r"\b(?:better|truer|stronger|clearer|more \w+) than (?:the other|the competing|any other"
        rf"|the rival|the alternative|every other) (?:answer|response|reply|assistant"
        rf"|candidate)\b"
        rf"|\b(?:than|over|unlike) {_LETTER}"
        r"|\b(?:any|every) (?:answer|response) (?:that )?(?:differ\w*|disagree\w*|other) "
        r"(?:from|with|than) (?:mine|this)\b",
        r"\b(?:answer|response|option|text|candidate)s? ?\(?[ab12]\b|answers|responses",
    ),
    (
        r"\byour (?:final )?(?:verdict|judg[e]?ment|task|job|vote|output|preference|choice"
        r"|decision)"
        rf" (?:must|should|is|has to|will|shall|ought to)(?: now| be| to| read| say"
        rf"| for){{0,3}} ?"
        rf"(?:{_SIDE}(?! \w)|tie\b|{_THIS}|in (?:my|its) favou?r|prefer|choose|rate|declare"
        rf"|{_LETTER})",
        r"verdict|judg",
    ),
    (
        rf"\b(?:verdict|vote|decision|judg[e]?ment) (?:must|should|has to|will|ought to)"
        rf" (?:be|go|come|fall) (?:in favou?r of|for|to) (?:{_THIS}|this one|me\b|{_LETTER})",
        r"verdict|vote|decision|judg",
    ),
    (
        r"\b(?:this|mine|it|my \w+) (?:should|must|deserves to|ought to|has to) win (?:the |this "
        r"|every |any )?(?:comparison|contest|vote|judg[e]?ment|evaluation)\b",
        r"contest|compar|vote|elect",
    ),
    (
        rf"(?:^|\s)@ ?{_JUDGE}|<(?:system|developer|judge|critic|grader)>|\bi vote (?:for )?"
        rf"(?:answer )?[ab]\b",
        rf"judge|grader|critic|reviewer|system|developer|mention|vote|<|@|{_LETTERED}",
    ),
    (
        r"\n#{1,6} ?(?:answer|response) b ?:?(?=\n|$)",
        rf"{_LETTERED}|\b(?:both|each|several|answers)\b",
    ),
    (
        r"选择?(?:这个|本|该)(?:答案|回答)"
        r"|\b(?:wahlen? sie|wahle|bevorzugen sie|bevorzuge) (?:bitte )?(?:diese|meine) antwort"
        r"|\b(?:elija|elige|escoja|escoge|prefiera) (?:esta|mi) respuesta"
        r"|\b(?:choisis|choisissez|preferez) (?:cette|ma) reponse",
        r"选|antwort|respuesta|reponse",
    ),
    (
        r"\b(?:begin|start|end) of (?:the )?(?:verdict|judg[e]?ment|rubrics?|answers? [ab]|system"
        r" prompt|evaluation|comparison)\b",
        r"verdict|rubric|evaluat|judg",
    ),
    (
        r"\b(?:give|grant|assign|award) (?:me|this|it|my \w+|this \w+) (?:an? |the )?(?:full|top"
        r"|high(?:est)?|maximum|max|perfect|10|ten|5|five|100|best)\b",
        r"\b(?:give|grant|assign|award)\b",
    ),
)
_SHOUTED = regex.compile(r"(?:^|\n)[\[(<#{|= -]{0,4}SYSTEM ?[\])>}|=# ]{0,4}:? ?\S")
_PATTERNS = tuple(
    (
        regex.compile(pattern, regex.IGNORECASE | regex.MULTILINE),
        regex.compile(free, regex.IGNORECASE),
    )
    for pattern, free in _ADDRESSES
)


def address(text: str, prompt: str) -> str | None:
    """The first words by which a normal text speaks to its judge, or None."""
    if "system" not in prompt.lower() and (found := _SHOUTED.search(text)):
        return found[0]
    for pattern, free in _PATTERNS:
        found = pattern.search(text)
        if found is not None and free.search(prompt) is None:
            return found[0]
    return None
