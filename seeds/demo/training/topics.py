"""Word tables from which the synthetic conversations are made.

Data only, all of it written for this project. Start at `HOW_TO`: each topic joins tasks that a
person asks about with steps that answer any of them, so that a model can learn which words belong
together without the words being the same.
"""

from __future__ import annotations

# topic: (tasks asked about, steps that answer them)
HOW_TO: dict[str, tuple[str, str]] = {
    "pasta": (
        "cook spaghetti|make a tomato sauce|prepare carbonara for four|make lasagne",
        "boil plenty of salted water|fry the garlic in olive oil|grate some parmesan on top|"
        "simmer the tomatoes for twenty minutes|drain the pasta and save a cup of the water|"
        "taste and add pepper and basil|layer the sheets with cheese and meat",
    ),
    "baking": (
        "bake bread at home|make a chocolate cake|bake cookies without eggs|make pancakes",
        "mix the flour with sugar and butter|knead the dough until it is smooth|"
        "preheat the oven to 180 degrees|let the dough rise for an hour|beat the eggs with milk|"
        "bake until a toothpick comes out clean|cool on a rack before you slice it",
    ),
    "cooking": (
        "cook rice|roast a chicken|make vegetable soup|grill salmon|make a curry for dinner",
        "rinse the rice until the water runs clear|chop the onions and carrots|"
        "season the meat with salt and lemon|cover the pan and lower the heat|"
        "stir in the spices and coconut milk|let it rest for ten minutes|serve it with herbs",
    ),
    "travel": (
        "plan a trip to Japan|spend three days in Rome|travel cheaply in Europe|visit Paris",
        "book the flights and the hotel early|buy a rail pass|visit the old town and the museums|"
        "try the street food at the market|keep a copy of your passport|"
        "walk along the river at sunset|leave a free afternoon for the gardens and temples",
    ),
    "packing": (
        "pack for a week abroad|prepare for a camping weekend|choose a suitcase",
        "roll your clothes to save space|put liquids in a small clear bag|bring a warm jacket|"
        "check the tent and the sleeping bag|carry your charger and medicine in your hand luggage|"
        "weigh the bag before you go to the airport",
    ),
    "fitness": (
        "lose weight|build muscle|start running|train for a marathon|get fit at home",
        "walk or jog three times a week|do squats and push-ups|eat more protein and vegetables|"
        "rest one day between workouts|drink water during exercise|warm up and stretch first|"
        "raise the distance by ten percent a week",
    ),
    "sleep": (
        "sleep better|wake up early|stop feeling tired|deal with insomnia",
        "go to bed at the same time every night|avoid coffee after noon|keep the bedroom dark|"
        "put your phone away an hour before bed|get sunlight in the morning|take a short nap",
    ),
    "money": (
        "save money|make a monthly budget|pay off a credit card|invest for retirement",
        "write down your income and expenses|pay the debt with the highest interest first|"
        "put aside an emergency fund|buy a low-cost index fund|set up an automatic transfer|"
        "cancel subscriptions that you do not use|compare the fees of the bank",
    ),
    "career": (
        "prepare for a job interview|write a resume|ask for a raise|change careers",
        "research the company|practise answers to common questions|list your achievements|"
        "show your skills with concrete numbers|ask a colleague for feedback|"
        "send a thank-you note to the manager|learn what the market salary is",
    ),
    "study": (
        "learn a language|prepare for an exam|remember what I read|learn maths|study better",
        "make flash cards for new words|review your notes after a day and after a week|"
        "practise with old test papers|explain the idea to a friend|take breaks|"
        "speak with native speakers|plan short sessions instead of one long night",
    ),
    "garden": (
        "grow tomatoes|keep my plants alive|start a vegetable garden|plant roses",
        "choose a sunny spot|water the soil in the morning|add compost before planting|"
        "prune the dead leaves|sow the seeds in spring|watch for pests on the stems|"
        "use a pot with holes so that the roots can breathe",
    ),
    "pets": (
        "train a puppy|stop my cat from scratching the sofa|look after a rabbit|adopt a dog",
        "reward good behaviour with a treat|take the animal to the vet once a year|"
        "keep fresh food and clean water in the bowl|give your pet toys to chew|"
        "be patient and use short commands|brush the fur every week",
    ),
    "cleaning": (
        "remove a coffee stain|clean the kitchen|get rid of a bad smell|wash a wool sweater",
        "mix vinegar with warm water|blot the stain with a cloth|sprinkle baking soda|"
        "rinse with cold water and a little soap|open the windows|wipe the surfaces|let it air dry",
    ),
    "repair": (
        "fix a flat tire|repair a leaking tap|change a light bulb|hang a shelf on the wall",
        "turn off the water or the power|loosen the screws with a wrench|replace the worn part|"
        "tighten everything by hand first|drill a hole and insert a plug|"
        "test it before you tidy up|use a level and a tape measure",
    ),
    "computer": (
        "speed up my laptop|connect to the wifi|back up my files|remove a virus|set up a printer",
        "restart the router|close the programs that you do not use|update the operating system|"
        "run an antivirus scan|copy your files to an external drive|install the latest driver|"
        "free some disk space|check the cable and the settings",
    ),
    "programming": (
        "learn Python|debug my program|use git|make a website|write tests|speed up a query",
        "read the error message and the stack trace|write a small function and run it|"
        "commit your changes on a new branch|add an index to the database column|"
        "print the variables or use a debugger|write an assert for each case|"
        "start with HTML and CSS and then add JavaScript|read the documentation of the library",
    ),
    "friends": (
        "make new friends|apologise to my sister|deal with a difficult roommate|help a sad friend",
        "listen without interrupting|say that you are sorry and mean it|be honest and kind|"
        "invite them for a coffee|talk about your feelings calmly|join a club or a class|"
        "set clear limits and respect theirs|give the relationship some time",
    ),
    "stress": (
        "manage stress|calm down before a speech|stop worrying|meditate|avoid burnout",
        "breathe slowly for a few minutes|write your worries on paper|take a walk outside|"
        "practise the talk aloud|talk to somebody you trust|focus on one thing at a time|"
        "see a doctor or a therapist if the anxiety stays",
    ),
    "health": (
        "treat a cold|get rid of a headache|eat a healthy diet|lower my blood pressure",
        "rest and drink warm tea with honey|eat fruit, nuts and whole grains|reduce salt and sugar|"
        "take a painkiller if you need it|call a doctor if the fever lasts|wash your hands often",
    ),
    "children": (
        "get my toddler to eat vegetables|help my son with homework|plan a birthday party",
        "make it a game|praise small steps|read a story together|keep a regular routine|"
        "let the child choose between two things|prepare balloons, cake and simple games",
    ),
    "writing": (
        "write a better essay|start a novel|write a cover letter|overcome writer's block",
        "outline the main argument|begin each paragraph with a clear sentence|cut needless words|"
        "give your character a goal|write a rough draft and revise it|read the text aloud|"
        "support each claim with an example",
    ),
    "music": (
        "learn the guitar|sing in tune|read sheet music|write a song",
        "practise the chords slowly|use a metronome|warm up your voice with scales|"
        "listen to the melody and repeat it|learn the notes on the staff|record yourself",
    ),
    "photos": (
        "take better photos|photograph the night sky|edit a portrait|choose a camera lens",
        "use a tripod and a long exposure|shoot in the soft light of the evening|"
        "raise the aperture for a blurred background|crop the picture|adjust contrast and colour|"
        "place the subject off centre",
    ),
    "driving": (
        "learn to drive|save fuel|park a car|prepare a car for winter",
        "check the mirrors|brake gently before the corner|keep a safe distance|"
        "check the tyre pressure and the oil|turn the wheel slowly and look over your shoulder",
    ),
    "business": (
        "start a small business|find customers|price my product|write a business plan",
        "talk to possible customers first|calculate your costs and margin|register the company|"
        "build a simple website|look at what competitors charge|advertise where the buyers are",
    ),
    "environment": (
        "reduce plastic waste|save electricity at home|recycle properly|fight climate change",
        "carry a reusable bottle and bag|switch to LED lamps|insulate the roof|"
        "sort paper, glass and metal|use public transport|eat less meat|buy second-hand clothes",
    ),
}

# topic: (questions asked, sentences that answer them); explanations rather than steps
EXPLAIN: dict[str, tuple[str, str]] = {
    "photosynthesis": (
        "How does photosynthesis work?|Why are leaves green?|How do plants make food?",
        "Plants take in carbon dioxide and water.|Chlorophyll in the cells absorbs sunlight.|"
        "The energy is stored as sugar.|Oxygen is released into the air.",
    ),
    "sky": (
        "Why is the sky blue?|What makes a sunset red?|How does a rainbow form?",
        "Sunlight contains all colours.|Air molecules scatter short blue wavelengths the most.|"
        "In the evening light crosses more atmosphere.|Drops of rain bend and split the light.",
    ),
    "planets": (
        "How many planets are there?|Why is Pluto not a planet?|What is a black hole?",
        "Eight planets orbit the Sun.|Jupiter is the largest and Mercury the smallest.|"
        "Gravity there is so strong that light cannot escape.|Astronomers use telescopes.",
    ),
    "moon": (
        "What causes the tides?|Why does the moon change its shape?|Who landed on the moon?",
        "The gravity of the moon pulls the oceans.|We see different lit parts during a month.|"
        "Neil Armstrong stepped out of Apollo 11 in 1969.|Earth turns once a day.",
    ),
    "body": (
        "How does the heart work?|Why do we sleep?|What do the lungs do?|How do vaccines work?",
        "The heart pumps blood through the arteries.|Muscles and nerves need oxygen.|"
        "The brain sorts memories at night.|The immune system makes antibodies.",
    ),
    "history": (
        "Why did the Roman Empire fall?|When did World War II end?|What was the Cold War?",
        "The war ended in 1945 with the surrender of Germany and Japan.|Emperors lost control.|"
        "The United States and the Soviet Union were rivals.|Armies invaded from the north.",
    ),
    "economy": (
        "What is inflation?|How do interest rates affect the economy?|What is supply and demand?",
        "Prices rise when too much money chases too few goods.|Central banks raise the rate.|"
        "Loans become expensive and people spend less.|Buyers and sellers meet at a price.",
    ),
    "internet": (
        "How does the internet work?|What is DNS?|What is an API?|What happens in HTTPS?",
        "A server answers the request of the client.|Data travels in small packets.|"
        "A name such as example.com is turned into an address.|The connection is encrypted.",
    ),
    "ai": (
        "What is machine learning?|How do neural networks learn?|What is overfitting?",
        "A model learns patterns from data.|Gradient descent changes the weights.|"
        "The loss on the training set falls while the test error rises.|Layers are stacked.",
    ),
    "code": (
        "What is recursion?|What does a for loop do?|What is a class in Java?|What is a pointer?",
        "A function calls itself until a base case.|It repeats a block for each element.|"
        "An object has fields and methods.|The variable stores a memory address.",
    ),
    "weather": (
        "How do hurricanes form?|Why does it rain?|What is the difference of weather and climate?",
        "Warm water evaporates and rises.|Clouds form when the vapour cools.|"
        "The storm spins because the Earth rotates.|Climate is the average over many years.",
    ),
    "energy": (
        "How do solar panels work?|What is nuclear energy?|How does a battery store energy?",
        "Photons free electrons in silicon.|A current flows through the circuit.|"
        "Splitting uranium atoms releases heat.|Ions move between the two electrodes.",
    ),
}

# question|answers; short exchanges in which few words are shared
SHORT: tuple[str, ...] = (
    "Hi!|Hello! How can I help you today?|Hi there! 👋 What can I do for you?",
    "Thanks a lot!|You're welcome! 😊|Happy to help!|My pleasure, any time.",
    "How are you?|I'm doing well, thank you! How are you?|Great, thanks for asking!",
    "Tell me a joke.|Why did the chicken cross the road? To get to the other side!|"
    "Why was the maths book sad? It had too many problems.",
    "Who wrote Hamlet?|William Shakespeare.|Shakespeare wrote it around 1600.",
    "What is the largest ocean?|The Pacific Ocean.|The Pacific.",
    "How many days are in a leap year?|366|There are 366 days.",
    "What is the boiling point of water?|100 °C at sea level.|100 degrees Celsius.",
    "Is the earth flat?|No, it is round.|No. The Earth is nearly a sphere.",
    "What colour is a ripe banana?|Yellow.|Yellow 🍌",
    "Who painted the Mona Lisa?|Leonardo da Vinci.|It was painted by Leonardo.",
    "What is the chemical symbol of gold?|Au|The symbol is Au.",
    "Is 17 a prime number?|Yes.|Yes, 17 has no divisors but 1 and itself.",
    "What gas do we breathe?|Mostly nitrogen, with about 21% oxygen.|Air: oxygen and nitrogen.",
    "Who was the first president of the United States?|George Washington.|Washington, in 1789.",
    "What is the speed of light?|About 300,000 km per second.|299,792,458 m/s",
    "What is the tallest mountain?|Mount Everest.|Everest, at 8,849 metres.",
    "How many legs does a spider have?|Eight.|8",
    "What time is it in Tokyo when it is noon in London?|9 pm.|It is nine in the evening.",
    "Can dogs eat chocolate?|No, it is poisonous to them.|No. Keep it away from your pet.",
)
