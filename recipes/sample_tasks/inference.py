"""Inference pairs: one hypothesis, three premises — one entails it, one leaves it open, one contradicts it.

Each hypothesis stands in the data once with every label, so that it alone says nothing; and whether a premise names,
swaps or omits what the hypothesis speaks of is seen only by reading both; each premise of a hypothesis names as many
things, so that neither does it alone. Activities and things are split by group: those of the test are never seen in training.
"""

from __future__ import annotations

import random

# word -> more general word
WHO = {
    "男の子": "子ども",
    "女の子": "子ども",
    "おじいさん": "お年寄り",
    "おばあさん": "お年寄り",
    "若い男性": "男性",
    "若い女性": "女性",
    "父": "家族",
    "母": "家族",
    "兄": "家族",
    "妹": "家族",
    "先生": "大人",
    "店の主人": "大人",
    "会社員": "大人",
    "大学生": "学生",
    "中学生": "学生",
    "高校生": "学生",
}
# general activity -> (specific activities that exclude one another, kinds of places)
ACTS: list[tuple[str, list[str], str]] = [
    (
        "スポーツをして",
        ["サッカーをして", "野球をして", "テニスをして", "バドミントンをして"],
        "out school",
    ),
    (
        "楽器を演奏して",
        ["ピアノを弾いて", "ギターを弾いて", "笛を吹いて", "太鼓をたたいて"],
        "home school",
    ),
    (
        "料理を作って",
        ["カレーを作って", "味噌汁を作って", "卵焼きを作って", "サンドイッチを作って"],
        "home",
    ),
    (
        "果物を食べて",
        ["りんごを食べて", "みかんを食べて", "バナナを食べて", "ぶどうを食べて"],
        "home out",
    ),
    (
        "麺を食べて",
        ["うどんを食べて", "ラーメンを食べて", "そばを食べて", "スパゲッティを食べて"],
        "home shop",
    ),
    (
        "飲み物を飲んで",
        ["コーヒーを飲んで", "お茶を飲んで", "牛乳を飲んで", "ジュースを飲んで"],
        "home shop",
    ),
    ("本を読んで", ["小説を読んで", "絵本を読んで", "漫画を読んで", "辞書を読んで"], "home school"),
    ("文字を書いて", ["手紙を書いて", "日記を書いて", "作文を書いて", "詩を書いて"], "home school"),
    (
        "動物の世話をして",
        ["犬の世話をして", "猫の世話をして", "うさぎの世話をして", "にわとりの世話をして"],
        "home out",
    ),
    ("掃除をして", ["窓を拭いて", "床を拭いて", "机を拭いて", "床を掃いて"], "school home"),
    ("花を眺めて", ["桜を眺めて", "ばらを眺めて", "ひまわりを眺めて", "菊を眺めて"], "out"),
    ("運動をして", ["走って", "縄跳びをして", "体操をして", "鉄棒をして"], "out school"),
    (
        "勉強をして",
        ["英語の勉強をして", "算数の勉強をして", "理科の勉強をして", "歴史の勉強をして"],
        "home school",
    ),
    (
        "お菓子を食べて",
        ["ケーキを食べて", "せんべいを食べて", "クッキーを食べて", "まんじゅうを食べて"],
        "home shop",
    ),
    ("洗い物をして", ["皿を洗って", "シャツを洗って", "鍋を洗って", "靴を洗って"], "home"),
    (
        "遊んで",
        ["かくれんぼをして", "トランプをして", "積み木で遊んで", "折り紙で遊んで"],
        "home school",
    ),
    ("買い物をして", ["野菜を買って", "魚を買って", "花を買って", "パンを買って"], "shop"),
    ("野菜を育てて", ["トマトを育てて", "きゅうりを育てて", "なすを育てて", "大根を育てて"], "out"),
    ("道具を直して", ["自転車を直して", "時計を直して", "椅子を直して", "傘を直して"], "home shop"),
    ("何かを編んで", ["マフラーを編んで", "手袋を編んで", "帽子を編んで", "かごを編んで"], "home"),
]
PLACES = {
    "out": {"公園": "外", "庭": "外", "川のそば": "外", "畑のそば": "外"},
    "home": {"台所": "家の中", "居間": "家の中", "自分の部屋": "家の中", "玄関": "家の中"},
    "school": {"教室": "学校", "体育館": "学校", "校庭": "学校", "廊下": "学校"},
    "shop": {"駅前の店": "店", "商店街の店": "店", "海辺の店": "店", "デパート": "店"},
}
TIMES = ["朝", "昼", "夕方", "夜"]
WITH = ["一人で", "友だちと二人で", "家族みんなで", "大勢で"]
CLOTHES = [
    ["赤い", "青い", "白い", "黒い", "緑色の"],
    ["帽子をかぶった", "服を着た", "かばんを持った", "靴をはいた", "マフラーをした"],
]
# general thing -> things, counter
THINGS: list[tuple[str, list[str], str]] = [
    ("食器", ["コップ", "皿", "茶碗", "どんぶり"], "つ"),
    ("果物", ["りんご", "みかん", "レモン", "桃"], "つ"),
    ("文房具", ["鉛筆", "はさみ", "ものさし", "筆"], "本"),
    ("花", ["ばら", "ゆり", "チューリップ", "ひまわり"], "本"),
    ("おもちゃ", ["人形", "こま", "積み木", "ボール"], "つ"),
    ("野菜", ["トマト", "なす", "かぼちゃ", "玉ねぎ"], "つ"),
    ("入れ物", ["箱", "かご", "バケツ", "びん"], "つ"),
    ("紙", ["封筒", "はがき", "切手", "写真"], "枚"),
    ("布", ["タオル", "ハンカチ", "風呂敷", "毛布"], "枚"),
    ("家具", ["椅子", "机", "本棚", "たんす"], "つ"),
    ("楽器", ["笛", "太鼓", "鈴", "木琴"], "つ"),
    ("お菓子", ["あめ", "まんじゅう", "だんご", "ゼリー"], "つ"),
]
NUMBERS = {
    "つ": ["一つ", "二つ", "三つ", "五つ", "八つ"],
    "本": ["一本", "二本", "三本", "五本", "八本"],
    "枚": ["一枚", "二枚", "三枚", "五枚", "八枚"],
}
COLOURED = {"食器", "文房具", "おもちゃ", "入れ物", "布", "家具", "紙"}  # a blue peach would be odd
SPOTS = ["机の上", "棚の上", "窓のそば", "床の上", "ドアの前", "階段の下", "いすの下", "玄関の横"]


def share(items: list, part: str) -> list:
    """The groups of one part: train 60 %, validation 20 %, test 20 %, never the same group in two."""
    cut, cut2 = round(len(items) * 0.6), round(len(items) * 0.8)
    return {"train": items[:cut], "validation": items[cut:cut2], "test": items[cut2:]}[part]


def other(draw: random.Random, items: list[str], than: str) -> str:
    return draw.choice([item for item in items if item != than])


class PersonScene:
    """Who does what, where, when, with whom, in which clothes; slots may be left out of the sentence."""

    slots: tuple[str, ...] = ("time", "clothes", "place", "with", "act")

    def __init__(self, draw: random.Random, part: str):
        self.draw = draw
        general, acts, tags = draw.choice(share(ACTS, part))
        self.choices = {
            "time": TIMES,
            "with": WITH,
            "act": acts,
            "place": list(PLACES[draw.choice(tags.split())]),
        }
        self.wear = draw.choice(CLOTHES[1])
        self.choices["clothes"] = [colour + self.wear for colour in CLOTHES[0]]
        self.who = draw.choice(list(WHO))
        self.values = {slot: draw.choice(self.choices[slot]) for slot in self.slots}
        self.general = general

    def sentence(self, values: dict[str, str]) -> str:
        """A premise that names the slots in `values`."""
        time = f"{values['time']}、" if "time" in values else ""
        place = f"{values['place']}で" if "place" in values else ""
        return f"{time}{values.get('clothes', '')}{self.who}が{place}{values.get('with', '')}{values.get('act', 'ゆっくりして')}います。"

    def hypothesis(self, slot: str) -> str:
        """A sentence about one slot (and the person), in one of several wordings."""
        value = self.values[slot]
        who = self.draw.choice([self.who, self.who, WHO[self.who]])
        if slot == "act":
            said = self.draw.choice([value, value, self.general])
            return self.draw.choice([f"{who}が{said}います。", f"{said}いるのは{who}です。"])
        if slot == "place":
            return self.draw.choice([f"{who}は{value}にいます。", f"{who}がいるのは{value}です。"])
        if slot == "time":
            return self.draw.choice([f"時間は{value}です。", f"{value}のできごとです。"])
        if slot == "with":
            return f"{who}は{value}過ごしています。"
        return f"{value}{who}がいます。"

    def swapped(self, slot: str) -> str:
        """Another value of the slot, under which the hypothesis is false."""
        return other(self.draw, self.choices[slot], self.values[slot])


class ThingScene(PersonScene):
    """How many of what, of which colour, where."""

    slots = ("colour", "number", "spot", "thing")

    def __init__(self, draw: random.Random, part: str):
        self.draw = draw
        self.general, things, counter = draw.choice(share(THINGS, part))
        self.choices = {
            "colour": CLOTHES[0],
            "number": NUMBERS[counter],
            "spot": SPOTS,
            "thing": things,
        }
        if self.general not in COLOURED:
            self.slots = ("number", "spot", "thing")
        self.values = {slot: draw.choice(self.choices[slot]) for slot in self.slots}

    def sentence(self, values: dict[str, str]) -> str:
        spot = f"{values['spot']}に" if "spot" in values else "そこに"
        return f"{spot}{values.get('colour', '')}{values.get('thing', self.general)}が{values.get('number', '')}置いてあります。"

    def hypothesis(self, slot: str) -> str:
        value, thing = self.values[slot], self.general
        if slot == "thing":
            return self.draw.choice([f"置いてあるのは{value}です。", f"{value}が見えます。"])
        if slot == "number":
            return self.draw.choice([f"{thing}が{value}あります。", f"{thing}の数は{value}です。"])
        if slot == "colour":
            return f"{value}{thing}があります。"
        return self.draw.choice(
            [f"{thing}は{value}にあります。", f"{thing}があるのは{value}です。"]
        )


def triple(draw: random.Random, part: str) -> list[dict[str, str]]:
    """One hypothesis with its three premises."""
    scene = (PersonScene if draw.random() < 0.6 else ThingScene)(draw, part)
    slot = draw.choice(scene.slots)
    hypothesis = scene.hypothesis(slot)
    others = [name for name in scene.slots if name != slot]
    count = draw.randint(
        2, len(others)
    )  # slots named by each premise, so that what is left out tells nothing by itself
    rows = []
    for label in ("entailment", "neutral", "contradiction"):
        names = draw.sample(others, count if label == "neutral" else count - 1)
        shown = {name: scene.values[name] for name in names}
        if label != "neutral":
            shown[slot] = scene.values[slot] if label == "entailment" else scene.swapped(slot)
        rows.append({"premise": scene.sentence(shown), "hypothesis": hypothesis, "label": label})
    return rows


def make(part: str, count: int, seed: int, taken: set[tuple[str, ...]]) -> list[dict[str, str]]:
    """`count` rows, three a hypothesis; no pair twice, and none of `taken` (the pairs of earlier parts; added to)."""
    draw = random.Random(f"{seed}:{part}")
    rows: list[dict[str, str]] = []
    group = 0
    while len(rows) < count:
        made = triple(draw, part)
        pairs = {(row["premise"], row["hypothesis"]) for row in made}
        if len(pairs) < 3 or pairs & taken:
            continue
        taken |= pairs
        group += 1
        rows += [
            {"id": f"{part}-{len(rows) + place}", "group": f"{part}-{group}", **row}
            for place, row in enumerate(made)
        ]
    draw.shuffle(rows)
    return rows
