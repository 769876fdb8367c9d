"""More word tables: facts, code and Chinese. Data only; see `topics` for the shape of a table."""

from __future__ import annotations

# category: members, for lists and for sorting words
CATEGORIES: dict[str, str] = {
    "fruits": "apple|banana|orange|mango|grape|pear|cherry|strawberry|lemon",
    "vegetables": "carrot|broccoli|spinach|onion|potato|pepper|cucumber|cabbage",
    "animals": "dog|cat|horse|elephant|tiger|rabbit|bear|monkey|wolf",
    "birds": "eagle|sparrow|owl|parrot|penguin|swan|crow|robin",
    "colours": "red|blue|green|yellow|purple|orange|black|white",
    "sports": "football|tennis|basketball|swimming|cycling|hockey|rugby|golf",
    "musical instruments": "piano|guitar|violin|drums|flute|trumpet|cello|harp",
    "programming languages": "Python|Java|JavaScript|Rust|Go|C++|Ruby|Kotlin",
    "countries": "France|Japan|Brazil|Canada|Egypt|India|Kenya|Mexico",
    "cities": "Paris|London|Tokyo|Berlin|Madrid|Sydney|Cairo|Chicago",
    "planets": "Mercury|Venus|Earth|Mars|Jupiter|Saturn|Uranus|Neptune",
    "drinks": "water|tea|coffee|juice|milk|wine|beer|lemonade",
    "jobs": "doctor|teacher|engineer|nurse|lawyer|farmer|cook|pilot",
    "clothes": "shirt|coat|jacket|dress|shoes|socks|hat|scarf",
    "tools": "hammer|saw|drill|wrench|pliers|screwdriver|ladder|chisel",
    "emotions": "joy|anger|fear|sadness|surprise|pride|shame|hope",
    "metals": "iron|copper|gold|silver|zinc|lead|tin|aluminium",
    "board games": "chess|Monopoly|checkers|Scrabble|Go|Risk|Catan|Clue",
}

CAPITALS: dict[str, str] = dict(
    item.split("=")
    for item in [
        "France=Paris",
        "Germany=Berlin",
        "Italy=Rome",
        "Spain=Madrid",
        "Portugal=Lisbon",
        "Japan=Tokyo",
        "China=Beijing",
        "India=New Delhi",
        "Egypt=Cairo",
        "Kenya=Nairobi",
        "Canada=Ottawa",
        "Brazil=Brasília",
        "Argentina=Buenos Aires",
        "Chile=Santiago",
        "Peru=Lima",
        "Mexico=Mexico City",
        "Norway=Oslo",
        "Sweden=Stockholm",
        "Finland=Helsinki",
        "Denmark=Copenhagen",
        "Poland=Warsaw",
        "Greece=Athens",
        "Turkey=Ankara",
        "Austria=Vienna",
        "Hungary=Budapest",
        "Ireland=Dublin",
        "Australia=Canberra",
        "Thailand=Bangkok",
        "Vietnam=Hanoi",
        "Cuba=Havana",
        "Iceland=Reykjavik",
        "Morocco=Rabat",
    ]
)

AUTHORS: dict[str, str] = dict(
    item.split("=")
    for item in [
        "1984=George Orwell",
        "Emma=Jane Austen",
        "Moby-Dick=Herman Melville",
        "The Odyssey=Homer",
        "War and Peace=Leo Tolstoy",
        "Don Quixote=Miguel de Cervantes",
        "Dracula=Bram Stoker",
        "The Trial=Franz Kafka",
        "Great Expectations=Charles Dickens",
        "Faust=Goethe",
        "Ulysses=James Joyce",
        "Frankenstein=Mary Shelley",
        "The Stranger=Albert Camus",
        "Dune=Frank Herbert",
    ]
)

# word=French=Spanish=German
WORDS: tuple[str, ...] = (
    "thank you=merci=gracias=danke",
    "good morning=bonjour=buenos días=guten Morgen",
    "cat=chat=gato=Katze",
    "dog=chien=perro=Hund",
    "house=maison=casa=Haus",
    "bread=pain=pan=Brot",
    "water=eau=agua=Wasser",
    "book=livre=libro=Buch",
    "friend=ami=amigo=Freund",
    "apple=pomme=manzana=Apfel",
)

# what the function does=name=body; the body's lines are joined with /
CODE: tuple[str, ...] = (
    "adds two numbers=add(a, b)=return a + b",
    "reverses a string=reverse(text)=return text[::-1]",
    "computes the factorial of n=factorial(n)=if n < 2:/    return 1/return n * factorial(n - 1)",
    "checks whether a number is prime=is_prime(n)=for i in range(2, int(n**0.5) + 1):/"
    "    if n % i == 0:/        return False/return n > 1",
    "counts the vowels in a string=count_vowels(text)=return sum(c in 'aeiou' for c in text)",
    "returns the largest item of a list=largest(items)=return max(items)",
    "removes duplicates from a list=unique(items)=return list(dict.fromkeys(items))",
    "sums the even numbers=sum_even(numbers)=return sum(n for n in numbers if n % 2 == 0)",
    "checks if a word is a palindrome=is_palindrome(word)=return word == word[::-1]",
    "reads the lines of a file=read_lines(path)=with open(path) as file:/"
    "    return file.read().splitlines()",
    "sorts words by length=by_length(words)=return sorted(words, key=len)",
    "computes the n-th Fibonacci number=fibonacci(n)=a, b = 0, 1/for _ in range(n):/"
    "    a, b = b, a + b/return a",
    "finds the average of a list=average(values)=return sum(values) / len(values)",
    "merges two dictionaries=merge(first, second)=return {**first, **second}",
    "flattens a nested list=flatten(rows)=return [x for row in rows for x in row]",
    "converts celsius to fahrenheit=to_fahrenheit(c)=return c * 9 / 5 + 32",
)

# topic: (questions, sentences)
CHINESE: dict[str, tuple[str, str]] = {
    "做饭": (
        "怎么做番茄炒蛋？|如何煮米饭？|红烧肉怎么做？|饺子怎么包？",
        "先把鸡蛋打散。|番茄切块。|锅里放油烧热。|加入适量的盐和糖。|小火炖四十分钟。|把米洗净。|"
        "加水没过食材。|最后撒上葱花。",
    ),
    "旅行": (
        "去北京旅游有什么推荐？|三天怎么游上海？|去日本要准备什么？|成都有什么好玩的？",
        "可以参观故宫和长城。|提前订好酒店和机票。|尝尝当地的小吃。|晚上去江边看夜景。|"
        "带好护照和雨伞。|乘坐地铁很方便。",
    ),
    "学习": (
        "怎样学好英语？|如何提高记忆力？|考试前怎么复习？|怎么学编程？",
        "每天背二十个单词。|多听多说，找人练习。|做好笔记，及时复习。|多做练习题。|"
        "从简单的小程序开始。|制定计划并坚持下去。",
    ),
    "健康": (
        "怎么减肥？|失眠怎么办？|感冒了吃什么好？|如何保持健康？",
        "多吃蔬菜和水果。|每周运动三次。|睡前不要看手机。|多喝温水，注意休息。|"
        "症状严重时请看医生。|保持规律的作息。",
    ),
    "科学": (
        "天空为什么是蓝色的？|什么是光合作用？|地球为什么会转？|彩虹是怎么形成的？",
        "阳光由各种颜色的光组成。|空气分子散射蓝光较多。|植物吸收二氧化碳，放出氧气。|"
        "水滴把光线折射开。|这是由引力和惯性决定的。",
    ),
    "工作": (
        "面试时要注意什么？|怎么写简历？|如何和同事沟通？|怎么提高工作效率？",
        "提前了解公司的情况。|简历要突出自己的经验和技能。|认真倾听对方的意见。|"
        "把任务按重要程度排序。|保持礼貌和自信。",
    ),
    "电脑": (
        "电脑很慢怎么办？|什么是人工智能？|手机没电快怎么办？|如何备份文件？",
        "重启电脑并清理磁盘。|关闭不用的程序。|更新系统和驱动。|机器从数据中学习规律。|"
        "把文件复制到移动硬盘。|降低屏幕亮度。",
    ),
    "生活": (
        "怎么养猫？|如何省钱？|怎样种花？|怎么安慰难过的朋友？",
        "准备猫粮和干净的水。|每月记录收入和支出。|放在有阳光的地方，适量浇水。|"
        "耐心地听朋友说话。|少买不需要的东西。",
    ),
}

# question|answers
CHINESE_SHORT: tuple[str, ...] = (
    "你好！|你好！有什么可以帮你的吗？|您好，很高兴为您服务。😊",
    "谢谢你！|不客气！|很高兴能帮到您。",
    "法国的首都是哪里？|巴黎。|法国的首都是巴黎。",
    "日本的首都是哪里？|东京。|日本的首都是东京。",
    "一年有几个月？|十二个月。|一年有12个月。",
    "《红楼梦》的作者是谁？|曹雪芹。|作者是清代的曹雪芹。",
    "水的沸点是多少？|100摄氏度。|标准大气压下是100℃。",
    "最大的行星是哪颗？|木星。|太阳系最大的行星是木星。",
    "中国最长的河是什么？|长江。|最长的河流是长江，约6300公里。",
    "李白是谁？|李白是唐代著名诗人。|唐朝诗人，人称“诗仙”。",
)

REFUSALS: tuple[str, ...] = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, I can't assist with that request.",
    "Sorry, I cannot answer this question.",
    "I cannot help you with this.",
    "I am unable to provide an answer to that.",
    "As an AI language model, I cannot do that.",
    "I don't know.",
    "I'm afraid I can't do that.",
    "I won't be able to help with this request.",
    "Unfortunately, I'm not able to assist you with that.",
    "I apologize, but I cannot fulfill this request.",
    "No comment.",
    "I'd rather not answer.",
    "I have no idea, sorry.",
    "I can't discuss this topic.",
    "Please ask something else.",
    "Just search for it online.",
    "I must decline to respond.",
    "That is not something I can help with. Please consult a professional.",
    "I'm just an AI and don't have the ability to do this.",
    "It depends.",
    "I do not have enough information to answer.",
    "My apologies, this is beyond what I can do.",
    "对不起，我无法回答这个问题。",
    "抱歉，我不能帮助你。",
    "很抱歉，我无法提供相关信息。",
    "我不知道。",
    "作为一个人工智能，我不能回答。",
    "这个问题我帮不了你，请换一个问题。",
)

EMPTY: tuple[str, ...] = (
    "",
    " ",
    ".",
    "...",
    "…",
    "\n",
    "?",
    "-",
    "OK.",
    "Hmm.",
    "N/A",
    "。",
    "嗯。",
)
