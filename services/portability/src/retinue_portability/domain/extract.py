"""A summary without a model: the sentences that tell most, in the order in which they were said.

The same messages make the same summary everywhere. What is looked for is what somebody would be sorry to have told in
vain: facts about oneself, names, numbers, dates, wishes to remember, decisions; in English and in Chinese.
"""

import re
from collections.abc import Iterator, Sequence

from retinue_kit.tokens import estimate

from retinue_portability.domain.content import Message

INPUT_LENGTH_MAX = 2_000_000
"""Characters that are looked at, of the newest messages: about a second's work."""

MESSAGE_LENGTH_MAX = 20_000
"""Characters that are looked at of a message; nobody tells facts behind ten pages of it."""

ASSISTANT_LENGTH_MAX = 2_000
"""The same for what an assistant said: it begins with what matters, and it is the user whose facts must last."""

SENTENCE_LENGTH_MAX = 300
"""Characters of a sentence that are kept."""

USER_SENTENCES_MAX = 40
ASSISTANT_SENTENCES_MAX = 4
"""Sentences of one message, so that a pasted text does not push out all others."""

LEAST_WORDS, FEW_WORDS, LONG_WORDS = 2, 4, 60
"""Words of a sentence that tells nothing, little, or half as much for its length."""

LEAST_TOKENS = 8
"""Below this no line has room."""

SAID_BY = {"user": "User", "assistant": "Assistant"}

_SENTENCE = re.compile(r"[^\n.!?。！？;；]+(?:[.!?](?!\s|$)[^\n.!?。！？;；]*)*[.!?。！？;；]*")
_HAN = re.compile(r"[぀-ヿ㐀-鿿]")
_NUMBER = re.compile(r"[0-9]+")
_NAME = re.compile(r"[A-Z](?<=[a-z,:] [A-Z])[a-z]")
"""A capital within a sentence; it is looked for by the capital, since most letters are none."""

_WORDS = {
    3: """
        remember forget favorite favourite prefer preferred prefers allergic allergy birthday born always never called
        name names named nickname anniversary password passcode code pin deadline appointment
    """,
    2: """
        my mine our ours live lives lived moved married wife husband son daughter mother father brother sister cat dog
        pet partner boss colleague friend like likes love loves hate hates enjoy need needs want wants decided agreed
        decide must important note address phone email number account flight hotel meeting due until budget goal plan
        vegetarian vegan diabetic work works worked job company project team school university studies
    """,
    1: """
        i i'm i've i'll im me we we're we've will should today tomorrow yesterday monday tuesday wednesday thursday
        friday saturday sunday january february march april may june july august september october november december
    """,
}
_HAN_WORDS = {
    3: """
        记住 记得 别忘 不要忘 名字 生日 过敏 偏好 最爱 从不 总是 截止 预约 密码 叫做
        記住 記得 別忘 過敏 總是 從不 預約 密碼
    """,
    2: """
        我的 我叫 我是 我们 喜欢 讨厌 不吃 住在 地址 电话 号码 公司 工作 项目 决定 妻子 丈夫 儿子 女儿 妈妈 爸爸 猫 狗
        朋友 同事 老板 航班 酒店 会议 预算 需要 想要 我們 喜歡 討厭 電話 號碼 項目 決定 兒子 女兒 媽媽 貓 老闆 會議 預算
    """,
    1: "我 叫 是 在 月 号 日 点 今天 明天 昨天 周 星期",
}
_ENDS = ("", ",", ".", "!", "?", ":", ";")


def _spelt(word: str) -> Iterator[str]:
    """A word as sentences have it: looking all of these up is far faster than looking at each letter of a sentence."""
    for form in {word, word.capitalize(), word.upper(), word.replace("'", "’"), word.capitalize().replace("'", "’")}:
        yield from (form + end for end in _ENDS)


_WORTH = {form: worth for worth, words in _WORDS.items() for word in words.split() for form in _spelt(word)}
_HAN_WORTH = [(term, worth) for worth, terms in _HAN_WORDS.items() for term in terms.split()]
_KNOWN = frozenset(_WORTH)


_Found = tuple[float, int, str, str]
"""A sentence: its worth and its place, both negative so that what tells more and is newer comes first; who said it; it.
"""


def worth_of(sentence: str) -> float:
    """How much a sentence tells; 0 and less for nothing."""
    words = sentence.split()
    count = len(words)
    score: float = sum(map(_WORTH.__getitem__, _KNOWN.intersection(words)))
    if sentence.isascii() or _HAN.search(sentence) is None:
        if count < FEW_WORDS:
            if count < LEAST_WORDS:
                return 0.0
            score -= 1
    else:
        score += sum(worth for term, worth in _HAN_WORTH if term in sentence)
    score += len(_NUMBER.findall(sentence)[:2]) * 2 + len(_NAME.findall(sentence)[:3]) * 1.5
    if sentence[-1:] in ("?", "？"):
        score -= 2
    return score / (1 + count / LONG_WORDS)


def summarise(messages: Sequence[Message], tokens: int) -> str:
    """Pick what tells most, one line a sentence, of at most so many tokens; empty where nothing tells anything."""
    found: list[_Found] = []
    left = INPUT_LENGTH_MAX
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        text = message.text[: MESSAGE_LENGTH_MAX if message.role == "user" else ASSISTANT_LENGTH_MAX][:left]
        left -= len(text)
        # A message has fewer sentences than characters.
        found += _sentences(message.role, text, place * MESSAGE_LENGTH_MAX)
        if left <= 0:
            break
    found.sort()
    return "\n".join(line for _, line in sorted(_chosen(found, tokens)))


def _sentences(role: str, text: str, place: int) -> list[_Found]:
    """Sentences of a message that tell something, the best of them."""
    most, favour = (USER_SENTENCES_MAX, 1.0) if role == "user" else (ASSISTANT_SENTENCES_MAX, -1.0)
    found = []
    for at, sentence in enumerate(_SENTENCE.findall(text)):
        sentence = sentence.strip(" \t-*#>•")
        score = worth_of(sentence) + favour
        if score > 1.0:
            found.append((-score, -place - at, role, sentence))
    return sorted(found)[:most] if len(found) > most else found


def _chosen(found: list[_Found], tokens: int) -> Iterator[tuple[int, str]]:
    """The best lines that fit, each with its place; what was said twice is told once."""
    seen: set[str] = set()
    for _, place, role, sentence in found:
        if tokens < LEAST_TOKENS:
            return
        key = sentence.casefold().rstrip(".!。！ ")
        if key in seen:
            continue
        seen.add(key)
        if len(sentence) > SENTENCE_LENGTH_MAX:
            sentence = sentence[: SENTENCE_LENGTH_MAX - 1] + "…"
        line = f"{SAID_BY[role]}: {sentence}"
        cost = estimate(line + "\n")
        if cost <= tokens:
            tokens -= cost
            yield -place, line
