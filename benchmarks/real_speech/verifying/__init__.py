"""What listening a second time is worth, on recordings of people.

second_look    recall before and after it, by who proposes
bank_sizes     recall and time of each way in, among a thousand terms to a million
belief         what a probability promises and keeps, by size of the bank
false_alarms   terms told that nobody said
answers        ranks of the right terms as `TermRetriever` answers
"""
