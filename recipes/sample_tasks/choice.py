"""Five-way questions about everyday things. Relations are shared between the parts, entities are not: what a test
question asks about never stood as an answer or a subject in training."""

from __future__ import annotations

import random

CATEGORIES: dict[str, str] = {
    "動物": "犬 猫 馬 牛 豚 羊 猿 象 虎 熊 鹿 うさぎ きつね たぬき ねずみ らくだ",
    "鳥": "すずめ からす はと つばめ わし たか にわとり あひる ふくろう 白鳥 おうむ つる",
    "魚": "鯛 まぐろ さけ いわし さば あじ うなぎ 鯉 ふな かつお たら ひらめ",
    "虫": "ちょう とんぼ せみ あり はち かぶとむし ほたる こおろぎ ばった 蚊 はえ てんとうむし",
    "果物": "りんご みかん ぶどう 桃 梨 柿 いちご バナナ メロン すいか さくらんぼ レモン",
    "野菜": "大根 にんじん キャベツ きゅうり なす トマト ほうれんそう ねぎ 玉ねぎ かぼちゃ ごぼう 白菜",
    "花": "桜 梅 ばら 菊 ゆり たんぽぽ あさがお ひまわり すみれ つつじ 水仙 牡丹",
    "飲み物": "お茶 コーヒー 紅茶 牛乳 ジュース ビール ワイン 日本酒 水 サイダー ココア 麦茶",
    "乗り物": "電車 バス 自転車 飛行機 船 自動車 馬車 地下鉄 トラック ヨット 新幹線 ヘリコプター",
    "楽器": "ピアノ ギター バイオリン 笛 太鼓 琴 三味線 ラッパ フルート オルガン 尺八 木琴",
    "家具": "机 椅子 たんす 本棚 ベッド 食器棚 ソファー 鏡台 こたつ 戸棚",
    "文房具": "鉛筆 消しゴム ノート ものさし 万年筆 筆箱 のり 画用紙 クレヨン 絵の具",
    "衣服": "シャツ ズボン スカート 着物 上着 セーター コート 浴衣 靴下 手袋 帽子 袴",
    "スポーツ": "野球 サッカー テニス 相撲 柔道 剣道 水泳 スキー バレーボール 卓球 マラソン ゴルフ",
    "仕事": "医者 教師 大工 農民 漁師 警察官 看護婦 弁護士 作家 画家 俳優 運転手 兵士 記者",
    "体の部分": "手 足 頭 目 耳 鼻 口 首 肩 腕 指 膝 腹 背中",
    "家族": "父 母 兄 姉 弟 妹 祖父 祖母 叔父 叔母 息子 娘",
    "建物": "学校 病院 図書館 駅 寺 神社 教会 城 工場 旅館 銀行 郵便局 劇場",
    "天気": "雨 雪 晴れ 曇り 嵐 霧 雷 台風 吹雪 夕立",
    "色": "赤 青 白 黒 緑 紫 茶色 灰色 黄色 桃色",
    "国": "日本 中国 フランス ドイツ イギリス アメリカ ロシア イタリア スペイン インド",
    "季節や月": "春 夏 秋 冬 正月 一月 四月 八月 十二月",
    "料理": "カレー 天ぷら 寿司 味噌汁 おにぎり うどん ラーメン 刺身 鍋物 煮物 サラダ",
    "台所の道具": "包丁 鍋 まな板 やかん フライパン しゃもじ おたま 茶碗 箸 皿",
}
OPPOSITES = (
    "高い-低い 長い-短い 大きい-小さい 重い-軽い 明るい-暗い 強い-弱い 新しい-古い 広い-狭い 早い-遅い 暑い-寒い 多い-少ない 近い-遠い 深い-浅い 太い-細い 厚い-薄い "
    "良い-悪い 好き-嫌い 上-下 右-左 前-後ろ 内-外 朝-夜 男-女 父-母 兄-弟 姉-妹 始まり-終わり 入口-出口 戦争-平和 成功-失敗 勝つ-負ける 開ける-閉める 買う-売る 行く-帰る "
    "立つ-座る 起きる-寝る 笑う-泣く 生きる-死ぬ 増える-減る 進む-戻る 安全-危険 便利-不便 簡単-複雑 南-北 東-西 先生-生徒 親-子 夏-冬 昼-夜中"
)
USES = {
    "紙を切る": "はさみ",
    "肉を切る": "包丁",
    "字を書く": "鉛筆",
    "雨の日に外を歩く": "傘",
    "時間を知る": "時計",
    "遠くの人と話す": "電話",
    "手紙を送る": "切手",
    "部屋を掃く": "ほうき",
    "髪をとかす": "くし",
    "歯をみがく": "歯ブラシ",
    "顔を拭く": "タオル",
    "湯をわかす": "やかん",
    "飯を炊く": "釜",
    "釘を打つ": "金づち",
    "木を切る": "のこぎり",
    "穴を掘る": "シャベル",
    "魚を釣る": "釣りざお",
    "火をつける": "マッチ",
    "服を縫う": "針",
    "長さを測る": "ものさし",
    "重さを量る": "はかり",
    "熱を測る": "体温計",
    "写真を撮る": "カメラ",
    "星を見る": "望遠鏡",
    "小さい物を見る": "虫めがね",
    "音楽を聞く": "ラジオ",
    "荷物を運ぶ": "車",
    "川を渡る": "橋",
    "二階へ上がる": "階段",
    "戸を閉めておく": "鍵",
    "汗を拭く": "ハンカチ",
    "暗い道を照らす": "懐中電灯",
    "金をしまう": "財布",
    "汁を飲む": "お椀",
    "飯を食べる": "箸",
    "寝る": "布団",
    "座る": "椅子",
    "体を洗う": "石けん",
    "洗濯物を乾かす": "物干し",
    "絵を描く": "絵の具",
}
PLACES = {
    "本を借りる": "図書館",
    "病気を治してもらう": "病院",
    "電車に乗る": "駅",
    "手紙を出す": "郵便局",
    "お金を預ける": "銀行",
    "勉強を教わる": "学校",
    "映画を見る": "映画館",
    "魚を見て歩く": "水族館",
    "動物を見て歩く": "動物園",
    "飛行機に乗る": "空港",
    "船に乗る": "港",
    "湯につかる": "温泉",
    "野菜を買う": "八百屋",
    "魚を買う": "魚屋",
    "パンを買う": "パン屋",
    "花を買う": "花屋",
    "薬を買う": "薬屋",
    "髪を切ってもらう": "床屋",
    "泊まる": "旅館",
    "絵を見て歩く": "美術館",
    "お祈りをする": "教会",
    "お参りをする": "神社",
    "芝居を見る": "劇場",
    "泳ぐ": "プール",
    "米を作る": "田んぼ",
    "料理をする": "台所",
    "会社の仕事をする": "事務所",
    "食事を注文する": "食堂",
    "品物を作る": "工場",
    "道に迷って助けを求める": "交番",
    "雪の上を滑る": "スキー場",
    "虫を採る": "野原",
}


def split_of(word: str, order: dict[str, int], total: int) -> str:
    place = order[word] / total
    return "train" if place < 0.70 else "validation" if place < 0.85 else "test"


class Words:
    """Every entity with the part it belongs to; the parts share no entity."""

    def __init__(self, seed: int):
        self.of_category = {name: words.split() for name, words in CATEGORIES.items()}
        self.part: dict[str, str] = {}
        draw = random.Random(seed)
        pairs = [pair.split("-") for pair in OPPOSITES.split()]
        for words in [
            *self.of_category.values(),
            list(USES.values()),
            list(PLACES.values()),
            [pair[0] for pair in pairs],
        ]:
            fresh = [word for word in dict.fromkeys(words) if word not in self.part]
            draw.shuffle(fresh)
            self.part |= {
                word: split_of(word, {w: i for i, w in enumerate(fresh)}, len(fresh))
                for word in fresh
            }
        for first, second in pairs:
            self.part.setdefault(second, self.part[first])
        self.pairs = [(a, b) for a, b in pairs if self.part[a] == self.part[b]]

    def within(self, words: list[str], part: str) -> list[str]:
        return [word for word in words if self.part[word] == part]


def questions(words: Words, part: str, draw: random.Random) -> list[tuple[str, str, list[str]]]:
    """(question, answer, wrong candidates to draw from) of every relation, entities of one part only."""
    made: list[tuple[str, str, list[str]]] = []
    for category, members in words.of_category.items():
        inside = set(members)
        strangers = [
            w
            for name, others in words.of_category.items()
            if name != category
            for w in words.within(others, part)
            if w not in inside
        ]
        for word in words.within(members, part):
            wording = draw.choice(
                [
                    "次のうち、{}はどれですか？",
                    "この中で{}と言えるのはどれですか？",
                    "{}の名前はどれですか？",
                ]
            )
            made.append((wording.format(category), word, strangers))
            home = [
                name
                for name, others in words.of_category.items()
                if name != category and word not in others
            ]
            wording = draw.choice(
                [
                    "「{}」は何の仲間ですか？",
                    "「{}」は次のどれに当たりますか？",
                    "「{}」はどれに入りますか？",
                ]
            )
            made.append((wording.format(word), category, home))
    known = {word for pair in words.pairs for word in pair if words.part[word] == part}
    for first, second in words.pairs:
        if words.part[first] == part:
            rest = sorted(known - {first, second})
            made += [
                (f"「{first}」の反対の言葉はどれですか？", second, rest),
                (f"「{second}」の反対の言葉はどれですか？", first, rest),
            ]
    for table, wordings in (
        (USES, ["{}ときに使うものはどれですか？", "{}のに役に立つのはどれですか？"]),
        (PLACES, ["{}のはどこですか？", "{}ために行く所はどこですか？"]),
    ):
        for deed, answer in table.items():
            if words.part[answer] == part:
                rest = [w for w in table.values() if w != answer and words.part[w] == part]
                made += [(wording.format(deed), answer, rest) for wording in wordings]
    return made


def make(
    part: str, count: int, seed: int, taken: set[tuple[str, ...]]
) -> list[dict[str, str | int]]:
    """`count` rows of one part, none of `taken` (added to); the right candidate's place is uniform. Raises `ValueError` when the lexicon gives too few."""
    draw = random.Random(f"{seed}:{part}")
    words = Words(seed)
    pool = questions(words, part, draw)
    draw.shuffle(pool)
    rows: list[dict[str, str | int]] = []
    for _ in range(4):
        for question, answer, rest in pool:
            fitting = sorted(set(rest) - {answer})
            if len(fitting) < 4:
                continue
            wrong = draw.sample(fitting, 4)
            label = draw.randrange(5)
            candidates = [*wrong[:label], answer, *wrong[label:]]
            if len(rows) < count and (question, *sorted(candidates)) not in taken:
                taken.add((question, *sorted(candidates)))
                rows.append(
                    {
                        "id": f"{part}-{len(rows)}",
                        "question": question,
                        **{f"choice{i}": c for i, c in enumerate(candidates)},
                        "label": label,
                    }
                )
    if len(rows) < count:
        raise ValueError(f"{part}: the lexicon gives {len(rows)} of {count} questions")
    draw.shuffle(rows)
    return rows
