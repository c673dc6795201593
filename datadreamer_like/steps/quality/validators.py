"""What else a text can be checked for. A validator is called with a text, and returns why it is not valid, or None."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    check_number,
    check_sequence,
    did_you_mean,
    require_extra,
)
from datadreamer_like.models.words import words_of

PII = ("email", "phone", "credit_card", "iban", "ssn", "ip", "mac", "postcode", "passport", "dob", "other")
"""What `NoPII` can find."""

# The library's own pattern has area codes in use only: not 555-123-4567.
_GROUPED = re.compile(r"(?<![\w.-])(?:\+?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}([.-]))\d{3}(?(1)\1|[ .-])\d{4}(?![\w-]|\.\d)")
# Nor has it numbers with the code of a country in groups, nor an IBAN whose last group is shorter than four.
_WITH_COUNTRY = re.compile(
    r"(?<![\w.+-])(?:\+|00(?=[1-9]\d[ ./-]))(?:1(?=[ .-]?\(?[2-9])|[2-9]\d)(?:[ ./-]?\(?\d{1,5}\)?){2,7}(?![\w-]|\.\d)"
)
_IBAN_IN_GROUPS = re.compile(r"\b[A-Z]{2}\d{2}(?: [A-Z\d]{4}){2,7} [A-Z\d]{1,3}\b")


@dataclass(frozen=True)
class MatchesPattern:
    r"""Has a match of a regular expression; with `absent=True`, has none.

    The match may be anywhere: write `^...$`, or `(?s)\A...\Z` for texts of several lines, to match the whole text.

    Raises:
        DefinitionError: The pattern is not a regular expression.

    Example:
        >>> MatchesPattern(r"(?i)as an ai language model", absent=True)("As an AI language model, I cannot.")
        'matches (?i)as an ai language model'
    """

    pattern: str
    absent: bool = False

    result_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            raise ArgumentTypeError(f"MatchesPattern: pattern must be a text, not {self.pattern!r:.100}.")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise DefinitionError(f"MatchesPattern: {self.pattern!r} is not a regular expression: {error}.") from error

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        if (re.search(self.pattern, text) is not None) == (not self.absent):
            return None
        return f"{'matches' if self.absent else 'does not match'} {self.pattern}"


@dataclass(frozen=True)
class LengthBetween:
    """Has a number of characters, words or tokens between two bounds, which are included.

    Args:
        least: Lower bound.
        most: Upper bound; None for none.
        unit: "characters", "words" (runs of letters and digits, so that "it's" has two, or single Chinese and
            Japanese characters) or "tokens".
        tokenizer: For tokens: an LLM, an embedder, a tokenizer of transformers or tokenizers, or a function that
            returns the number of tokens in a text.

    Raises:
        ArgumentTypeError: A bound is not a whole number, or the tokenizer cannot count tokens.
        DefinitionError: `least` is more than `most`, the unit is unknown, or tokens lack a tokenizer.

    Example:
        >>> LengthBetween(2, 5, "words")("Too short? No. This is too long.")
        'more than 5 words: 7'
    """

    least: int = 1
    most: int | None = None
    unit: str = "words"
    tokenizer: Any = None

    result_version: ClassVar[int] = 2  # 2: Chinese and Japanese characters are words
    units: ClassVar[tuple[str, ...]] = ("characters", "words", "tokens")

    def __post_init__(self) -> None:
        check_number(self.least, "LengthBetween: least", 0, whole=True)
        check_number(self.most, "LengthBetween: most", self.least, whole=True, optional=True)
        if self.unit not in self.units:
            hint = did_you_mean(str(self.unit), self.units)
            raise DefinitionError(f"LengthBetween: unit is {self.unit!r}; expected {', '.join(self.units)}.{hint}")
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise DefinitionError('LengthBetween: unit="tokens" and a tokenizer go together: pass both or neither.')
        can_count = any(hasattr(self.tokenizer, name) for name in ("count_tokens", "encode", "__call__"))
        if self.tokenizer is not None and (isinstance(self.tokenizer, str) or not can_count):
            raise ArgumentTypeError(
                f"LengthBetween: {self.tokenizer!r:.100} cannot count tokens. Pass an LLM or a tokenizer."
            )

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        length = self._length(text)
        if length < self.least:
            return f"fewer than {self.least:,} {self.unit}: {length:,}"
        if self.most is not None and length > self.most:
            return f"more than {self.most:,} {self.unit}: {length:,}"
        return None

    def _length(self, text: str) -> int:
        if self.unit == "characters":
            return len(text)
        if self.unit == "words":
            return len(words_of(text))
        if hasattr(self.tokenizer, "count_tokens"):
            return int(self.tokenizer.count_tokens(text))
        return len(self.tokenizer.encode(text)) if hasattr(self.tokenizer, "encode") else int(self.tokenizer(text))


@dataclass(frozen=True)
class InLanguage:
    """Is in one of some languages, by ISO 639-1 codes such as "en"; of 97 that the library py3langid knows, offline.

    A text without letters is in no language.

    Args:
        languages: One code or several.
        among: Codes that may occur at all. With few, short texts are found right far more often; None for all.
        min_probability: Least probability of the language that is found, 0 to 1.

    Raises:
        MissingExtra: py3langid is not installed.
        DefinitionError: A code is unknown, or not among those that may occur.

    Example:
        >>> InLanguage("en", among=["en", "de"])("Wann kommt der Zug nach Hamburg?")
        'in another language: de'
    """

    languages: str | Sequence[str]
    among: Sequence[str] | None = None
    min_probability: float = 0.0

    result_version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_extra("quality", "py3langid", what="InLanguage")
        given = (self.languages,) if isinstance(self.languages, str) else self.languages
        for name, codes in (("languages", given), ("among", self.among)):
            if codes is not None:
                check_sequence(codes, f"InLanguage: {name}", 'codes such as "en"')
                object.__setattr__(self, name, tuple(codes))
        check_number(self.min_probability, "InLanguage: min_probability", 0, 1)
        possible = set(_language_identifier(None).labels)
        for code in (*self.languages, *(self.among or ())):
            if code not in possible:
                named = _code_of(code)
                hint = f' Did you mean "{named}"?' if named in possible else did_you_mean(str(code), possible)
                raise DefinitionError(
                    f"InLanguage: {code!r} is not a known language; known: {', '.join(sorted(possible))}.{hint}"
                )
        if self.among is not None and (left_out := sorted({*self.languages} - {*self.among})):
            raise DefinitionError(f"InLanguage: {', '.join(left_out)} must be in `among` too.")

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        if not any(map(str.isalpha, text)):
            return "in no language: it has no letters"
        language, probability = _language_identifier(self.among).classify(text)
        if language not in self.languages:
            return f"in another language: {language}"
        return f"not surely {language}: {probability:.0%}" if probability < self.min_probability else None


@dataclass(frozen=True)
class NoProfanity:
    """Has no profane word of some languages, also not in disguise ("sh1t"), by the lists of the library glin-profanity.

    Args:
        languages: Names of languages whose lists are used, such as "english", "german"; 25 have one.
        allowed: Words that are no profanity here.

    Raises:
        MissingExtra: glin-profanity is not installed.
        DefinitionError: A language has no list.

    Example:
        >>> NoProfanity()("What a damn fine day.") is None
        True
    """

    languages: Sequence[str] = ("english",)
    allowed: Sequence[str] = ()

    result_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_extra("quality", "glin_profanity", what="NoProfanity")
        import typing

        from glin_profanity import Language

        check_sequence(self.languages, "NoProfanity: languages", 'names such as "english"')
        check_sequence(self.allowed, "NoProfanity: allowed", "words")
        object.__setattr__(self, "languages", tuple(self.languages))
        object.__setattr__(self, "allowed", tuple(self.allowed))
        known = typing.get_args(Language)
        for name in self.languages:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise DefinitionError(
                    f"NoProfanity: there is no list for {name!r}; there are: {', '.join(known)}.{hint}"
                )

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        found = _profanity_filter(self.languages, self.allowed).check_profanity(text)["profane_words"]
        return f"profanity: {', '.join(dict.fromkeys(found))}" if found else None


@dataclass(frozen=True)
class NoPII:
    """Has no personal data of some kinds, by the patterns and checksums of the library glin-profanity.

    Names and addresses of persons have no pattern, and are not found. The reason has the kinds, not the data. Phone
    numbers are also found by their groups of three, three and four digits, or by the code of a country ("+49 30
    1234567"), and not within longer numbers; of other countries' numbers without it, many are not found.

    Args:
        kinds: Of "email", "phone", "credit_card", "iban", "ssn", "ip", "mac", "postcode", "passport", "dob", "other".
            The last ones also match version numbers and other numbers: they are not among the defaults.

    Raises:
        MissingExtra: glin-profanity is not installed.
        DefinitionError: A kind is unknown.

    Example:
        >>> NoPII()("Write to ada@example.com.")
        'personal data: email'
    """

    kinds: Sequence[str] = field(default=PII[:5])

    result_version: ClassVar[int] = 3  # 3: phone numbers with a country's code, IBANs in groups

    def __post_init__(self) -> None:
        require_extra("quality", "glin_profanity", what="NoPII")
        check_sequence(self.kinds, "NoPII: kinds", "kinds of data")
        object.__setattr__(self, "kinds", tuple(self.kinds))
        for kind in self.kinds:
            if kind not in PII:
                hint = did_you_mean(str(kind), PII)
                raise DefinitionError(f"NoPII: there is no kind {kind!r}; there are: {', '.join(PII)}.{hint}")

    def __call__(self, text: str) -> str | None:
        """Returns why the text is not valid, or None."""
        matches = _pii_scanner().scan(text).matches
        found = dict.fromkeys(
            match.category for match in matches if match.category in self.kinds and not _within_number(text, match)
        )
        return f"personal data: {', '.join(found)}" if found else None


@functools.cache
def _language_identifier(among: tuple[str, ...] | None) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if among is not None:
        identifier.set_languages(among)
    return identifier


@functools.cache
def _profanity_filter(languages: tuple[str, ...], allowed: tuple[str, ...]) -> Any:
    from glin_profanity import Filter

    return Filter({"languages": list(languages), "ignore_words": list(allowed)})


@functools.cache
def _pii_scanner() -> Any:
    from glin_profanity import PiiScanner
    from glin_profanity.scanners.patterns.pii_patterns import PiiPattern, iban_check

    return PiiScanner(
        custom_patterns=[
            PiiPattern("grouped phone", "phone", _GROUPED),
            PiiPattern("phone with a country", "phone", _WITH_COUNTRY, lambda found: 8 <= _digits(found) <= 17),
            PiiPattern("iban in groups", "iban", _IBAN_IN_GROUPS, iban_check),
        ]
    )


def _digits(text: str) -> int:
    return sum(character.isdecimal() for character in text)


def _within_number(text: str, match: Any) -> bool:
    """Whether a phone number that was found is a part of a longer number, such as the digits of a fraction."""
    before, found = text[: match.start_index], text[match.start_index : match.end_index]
    is_fraction = found.isdecimal() and re.search(r"\d\.$", before) is not None
    return match.category == "phone" and (before[-1:].isdecimal() or is_fraction)


def _code_of(name: object) -> str | None:
    """Returns the code of a language by its English name."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code: str | None = TO_LANGUAGE_CODE.get(str(name).strip().lower())
    return code
