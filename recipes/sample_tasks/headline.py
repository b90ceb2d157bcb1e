"""Short local news and their headlines. What the headline says is spread over the article, and the towns, people and
things of the test never stand in training. All of it is invented."""

from __future__ import annotations

import random

TOWNS = [
    "青葉市",
    "白浜町",
    "松原市",
    "緑川町",
    "高森村",
    "星野市",
    "川辺町",
    "大谷村",
    "花岡市",
    "朝日町",
    "森下市",
    "月見町",
    "若草市",
    "東原町",
    "西浜市",
    "南山町",
    "北沢市",
    "中島町",
    "桜木市",
    "竹田町",
    "岩瀬市",
    "砂川町",
    "広野市",
    "石橋町",
    "水上村",
    "雪谷市",
    "梅園町",
    "杉原市",
    "風間町",
    "鶴原市",
    "浜田町",
    "長瀬市",
    "丸山町",
    "島崎市",
    "谷川村",
    "平田市",
    "野原町",
    "柳沢市",
    "早川町",
    "清川市",
]
NAMES = [
    "佐藤",
    "鈴木",
    "高橋",
    "田中",
    "伊藤",
    "渡辺",
    "山本",
    "中村",
    "小林",
    "加藤",
    "吉田",
    "山田",
    "佐々木",
    "山口",
    "松本",
    "井上",
    "木村",
    "林",
    "斎藤",
    "清水",
    "山崎",
    "森",
    "池田",
    "橋本",
    "阿部",
    "石川",
    "山下",
    "中島",
    "石井",
    "小川",
]
MONTHS = [f"{month}月{day}日" for month in range(1, 13) for day in (3, 8, 12, 19, 24)]
SLOTS: dict[str, list[str]] = {
    "animal": [
        "キリン",
        "ライオン",
        "パンダ",
        "ペンギン",
        "カワウソ",
        "レッサーパンダ",
        "ゾウ",
        "シマウマ",
        "コアラ",
        "アルパカ",
        "カバ",
        "フラミンゴ",
        "ラクダ",
        "オオカミ",
        "ホッキョクグマ",
    ],
    "festival": [
        "花火大会",
        "夏祭り",
        "雪まつり",
        "桜まつり",
        "もみじ祭り",
        "朝市",
        "音楽祭",
        "写真展",
        "菊の展示会",
        "将棋大会",
        "書道展",
        "星空観察会",
        "古本市",
        "餅つき大会",
        "凧あげ大会",
    ],
    "food": ["いちご", "りんご", "ぶどう", "新米", "桃", "トマト", "梨", "みかん", "さつまいも", "メロン", "柿", "栗", "玉ねぎ", "かぼちゃ", "とうもろこし"],
    "shop": [
        "パン屋",
        "本屋",
        "花屋",
        "喫茶店",
        "豆腐屋",
        "自転車店",
        "文房具店",
        "和菓子店",
        "魚屋",
        "食堂",
        "弁当店",
        "果物店",
        "靴店",
        "時計店",
        "ラーメン店",
    ],
    "sport": [
        "サッカー",
        "野球",
        "バレーボール",
        "卓球",
        "柔道",
        "水泳",
        "剣道",
        "テニス",
        "駅伝",
        "相撲",
        "バスケットボール",
        "弓道",
        "体操",
        "ラグビー",
        "スキー",
    ],
    "building": [
        "図書館",
        "市民プール",
        "体育館",
        "公民館",
        "美術館",
        "病院",
        "駅舎",
        "橋",
        "小学校",
        "郷土資料館",
        "温水プール",
        "児童館",
        "市場",
        "展望台",
        "植物園",
    ],
    "lost": ["財布", "子犬", "古い時計", "指輪", "手紙", "かばん", "猫", "鍵", "日記帳", "カメラ", "眼鏡", "絵", "人形", "ハンカチ", "傘"],
    "flower": ["桜", "梅", "ひまわり", "コスモス", "あじさい", "菜の花", "チューリップ", "ばら", "藤", "つつじ", "水仙", "ゆり", "椿", "朝顔", "すいせん"],
    "trouble": ["大雨", "大雪", "強風", "停電", "濃い霧", "落石", "倒木", "信号の故障", "断水", "雷", "地震", "台風", "線路の点検", "車両の故障", "高波"],
    "weather": ["大雨", "大雪", "強風", "長雨", "日照り", "寒さ", "暑さ", "雹", "台風", "霜", "水不足", "日照不足", "高温", "低温", "嵐"],
    "line": [
        "青葉線",
        "白浜線",
        "松原線",
        "緑川線",
        "高森線",
        "海岸線",
        "港線",
        "川辺線",
        "南北線",
        "東西線",
        "星野線",
        "花岡線",
        "月見線",
        "若草線",
        "桜木線",
    ],
}
# (article, headline); {slot} is filled, {n} is a number, {m} a second one
FRAMES: list[tuple[str, str]] = [
    (
        "{town}の動物園で{date}、{animal}の赤ちゃんが生まれた。体重は約{n}キロで、母親も元気だという。来月から一般に公開される予定で、園は名前を募集している。",
        "{animal}の赤ちゃん誕生、来月公開 {town}の動物園",
    ),
    (
        "{town}で{date}、毎年恒例の{festival}が開かれた。天気にも恵まれ、家族連れなど約{n}00人が訪れた。主催した{name}さんは「来年も続けたい」と話した。",
        "{town}で{festival}、{n}00人でにぎわう",
    ),
    (
        "{date}から予定されていた{town}の{festival}について、実行委員会は{weather}の影響で中止すると発表した。来年への延期も検討しているという。",
        "{weather}で{festival}中止 {town}",
    ),
    (
        "{town}の農家で{food}の収穫が始まった。今年は天候に恵まれ、例年より{n}日早い。農家の{name}さんは「甘くておいしい」と笑顔を見せた。",
        "{food}の収穫始まる、例年より{n}日早く {town}",
    ),
    (
        "{food}の値段が上がっている。{town}の市場では{date}、去年の同じ時期の{n}割高となった。{weather}で出荷が減ったことが原因とみられる。",
        "{food}が{n}割高、{weather}で出荷減 {town}",
    ),
    (
        "{town}の商店街に{date}、新しい{shop}が開店した。店主の{name}さんは4{n}歳で、会社を辞めて夢をかなえた。初日は朝から長い列ができた。",
        "4{n}歳で夢かなえ{shop}開店 {town}の商店街",
    ),
    (
        "{n}0年続いた{town}の{shop}が{date}で店を閉じる。店主の{name}さんは高齢のため決めたという。常連客からは惜しむ声が上がっている。",
        "{n}0年続いた{shop}が閉店へ {town}",
    ),
    (
        "{sport}の県大会の決勝が{date}に行われ、{town}の中学校が初めて優勝した。主将の{name}さんは「全国大会でも力を出したい」と話した。",
        "{sport}県大会、{town}の中学校が初優勝",
    ),
    (
        "{sport}の全国大会で、{town}出身の{name}選手が{n}位に入った。{name}選手はけがで去年の大会を休んでいた。地元では祝う会が計画されている。",
        "{name}選手が全国{n}位 {sport}、けがから復帰",
    ),
    (
        "{town}に建設中だった{building}が完成し、{date}に式典が開かれた。費用は約{n}億円。市民の意見を取り入れて設計された。一般の利用は来月からになる。",
        "{town}の{building}が完成、来月から利用",
    ),
    (
        "{town}は{date}、古くなった{building}を取り壊すと発表した。建てられてから{n}0年がたち、地震への備えが足りないと判断した。跡地の使い方は決まっていない。",
        "築{n}0年の{building}取り壊しへ {town}",
    ),
    (
        "{town}の小学生{name}さんが{date}、登校中に{lost}を拾って交番に届けた。持ち主は{n}年前から探していたといい、「本当にありがとう」と感謝した。",
        "小学生が拾った{lost}、{n}年ぶりに持ち主へ {town}",
    ),
    (
        "{date}朝、{line}で{trouble}があり、電車が約{n}時間止まった。通勤や通学の客など{m}000人に影響が出た。けが人はいなかった。",
        "{line}、{trouble}で{n}時間止まる",
    ),
    (
        "{line}は{date}、始発から全線で運転を再開した。{trouble}の影響で{n}日間にわたり運休していた。駅では利用者から安心の声が聞かれた。",
        "{line}が{n}日ぶり運転再開",
    ),
    (
        "{town}の公園で{flower}が見ごろを迎えた。約{n}000本が咲き、{date}も写真を撮る人でにぎわった。見ごろは今週末まで続きそうだ。",
        "{flower}{n}000本が見ごろ {town}の公園",
    ),
    (
        "{town}では今年、{flower}の開花が去年より{n}日遅れている。気温が低い日が続いたためで、{festival}の日程も変わる見通しだ。",
        "{flower}の開花{n}日遅れ、{festival}に影響 {town}",
    ),
    (
        "{town}の{name}さんが{date}、{n}00歳の誕生日を迎えた。長生きのこつは毎朝の散歩と{food}を食べることだという。町長が花束を贈った。".replace(
            "{n}00歳", "100歳"
        ),
        "100歳の{name}さん祝う、こつは散歩と{food} {town}",
    ),
    (
        "{town}の高校生が{food}を使った菓子を考え、{date}に駅前で売り出した。用意した{n}00個は昼すぎに売り切れた。代表の{name}さんは「来月も売りたい」と話した。",
        "高校生考案の{food}菓子、{n}00個完売 {town}",
    ),
    (
        "{date}夜、{town}で{trouble}があり、約{n}000世帯に影響が出た。市は{building}を開放して避難を呼びかけた。翌朝までに元に戻った。",
        "{town}で{trouble}、{n}000世帯に影響",
    ),
    (
        "{town}の{building}で{date}、子ども向けの{sport}教室が始まった。元選手の{name}さんが教え、{n}0人が参加した。教室は毎週土曜に開かれる。",
        "元選手が教える{sport}教室始まる {town}",
    ),
    (
        "迷子になっていた{animal}が{date}、{town}の川のそばで見つかった。動物園から逃げ出して{n}日がたっていた。飼育員が{food}を見せると近づいてきたという。",
        "逃げた{animal}、{n}日ぶり保護 {town}",
    ),
    (
        "{town}は{date}から、{building}の利用料を無料にする。子育ての家庭を助けるためで、年間{n}000万円の費用を見込む。市長の{name}氏が発表した。",
        "{building}の利用料無料に {town}、子育て支援",
    ),
]


def of_part(items: list[str], part: str) -> list[str]:
    cut, cut2 = round(len(items) * 0.6), round(len(items) * 0.8)
    return {"train": items[:cut], "validation": items[cut:cut2], "test": items[cut2:]}[part]


def make(part: str, count: int, seed: int, taken: set[tuple[str, ...]]) -> list[dict[str, str]]:
    """`count` articles of one part, every frame about equally often, none of `taken` (added to)."""
    draw = random.Random(f"{seed}:{part}")
    rows: list[dict[str, str]] = []
    while len(rows) < count:
        article, headline = FRAMES[len(rows) % len(FRAMES)]
        values = {slot: draw.choice(of_part(words, part)) for slot, words in SLOTS.items()}
        values |= {"town": draw.choice(of_part(TOWNS, part)), "name": draw.choice(of_part(NAMES, part)), "date": draw.choice(MONTHS)}
        values |= {"n": str(draw.randint(2, 9)), "m": str(draw.randint(2, 9))}
        text = article.format(**values)
        if (text,) not in taken:
            taken.add((text,))
            rows.append({"id": f"{part}-{len(rows)}", "article": text, "headline": headline.format(**values)})
    draw.shuffle(rows)
    return rows
