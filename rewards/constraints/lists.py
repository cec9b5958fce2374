"""Lists of words that constraints and the reading of text need."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# No packaged list of stop words fits: NLTK's has to be downloaded, others hold common nouns.
STOP_WORDS = frozenset(
    _words("""
    a an the this that these those and but or nor so yet if because as until while than then
    i me my myself we our ours ourselves you your yours yourself yourselves he him his himself
    she her hers herself it its itself they them their theirs themselves what which who whom
    whose when where why how am is are was were be been being have has had having do does did
    doing can could will would shall should may might must ought of at by for with about against
    between into through during before after above below to from up down in out on off over under
    again further once here there all any both each few more most other some such no not only own
    same too very just now cannot s t d ll m o re ve y don ain aren couldn didn doesn hadn hasn
    haven isn ma mightn mustn needn shan shouldn wasn weren won wouldn
    """)
)
CONJUNCTIONS = frozenset(_words("for and nor but or yet so"))
PRONOUNS = frozenset(
    _words("""
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his
    himself she her hers herself it its itself they them their theirs themselves this that these
    those who whom whose which what whoever whomever whatever whichever anybody anyone anything
    everybody everyone everything nobody nothing somebody someone something each either neither
    both all some any none
    """)
)
SMALL_WORDS = frozenset(
    _words("""
    a an the and but for nor or so yet as at by if in of off on per to up via vs with from into
    than over upon
    """)
)
"""Words that title case may leave small."""
AFTER_A_NOUN = frozenset(
    _words("""
    of is are was were be has have had can will would could should may might must does did
    """)
)
ABBREVIATIONS = frozenset(
    _words("""
    mr mrs ms dr prof st jr sr vs no vol fig eq ca cf al inc ltd co corp e.g i.e eg ie a.m p.m
    gen col capt lt sgt rev hon gov sen rep dept univ approx est jan feb mar apr jun jul aug sep
    sept oct nov dec
    """)
)
STARTERS = frozenset(
    _words("the a an he she it they we i you this that these those in on but and so")
)
"""Words that begin a sentence even after an abbreviation such as `U.S.`"""
NAMES = _words("""
    Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander
    Amelia Benjamin Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel
    Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas Audrey David Hannah Christopher
    Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan
    """)
"""The names that IFBench's prompts list."""
CAPITALS = _words("""
    Reykjavik Helsinki Oslo Tallinn Stockholm Riga Moscow Copenhagen Vilnius Minsk Dublin Berlin
    Amsterdam Warsaw London Brussels Kyiv Prague Luxembourg Paris Vienna Bratislava Budapest Vaduz
    Chisinau Bern Ljubljana Zagreb
    """)
"""Of Europe, north of 45 degrees, from north to south."""
AFRICA = _words("""
    zimbabwe zambia uganda tunisia togo tanzania sudan somalia senegal rwanda nigeria niger namibia
    mozambique morocco mauritius mauritania mali malawi madagascar libya liberia lesotho kenya
    guinea ghana gabon ethiopia eritrea egypt djibouti comoros chad cameroon burundi botswana benin
    angola algeria
    """)
"""Countries that have one English name each, a subset."""
