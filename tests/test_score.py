"The counts are jiwer's, the limits hold what they promise, and texts without words are no error."
import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_nb.errors import MissingPackage, RequestError
from whisper_nb.score import Score, _spellings, hallucination, normalize, paired_difference, score

WORDS = st.lists(st.sampled_from('turn the lights on off gate open stop'.split()), max_size=8).map(' '.join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6))
def test_the_rates_are_jiwers(pairs):
    said, heard = map(list, zip(*pairs))
    counted, found = jiwer.process_words(said, heard), score(pairs)
    assert found.wer == pytest.approx(counted.wer) and found.cer == pytest.approx(jiwer.cer(said, heard))
    assert found.words == sum(map(len, counted.references))
    assert (found.substitutions, found.insertions, found.deletions) == (counted.substitutions, counted.insertions, counted.deletions)
    assert (found.low is None) == (len(pairs) == 1) and (found.low is None or 0 <= found.low <= found.high)
    assert score(pairs) == found  # the same draws each time


def test_transformers_rules_and_the_spellings_are_whispers_own():
    from whisper.normalizers import EnglishTextNormalizer
    theirs, draw = EnglishTextNormalizer(), np.random.default_rng(0)
    words = "one two twenty hundred Mr. Mrs. colour o'clock won't can't it's $5 5% £3 million half point double 3.5 1,000 uh [noise] (laughs) Grüße naïve nineties 1990s second oh zero gonna organise …".split()
    for _ in range(300):
        text = ' '.join(draw.choice(words, draw.integers(0, 8)))
        assert normalize(text) == ' '.join(theirs(text).split()), text


def test_without_the_spellings_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr('whisper_nb.score.files', lambda name: None)
    with pytest.raises(MissingPackage, match='list of spellings') as caught: _spellings.__wrapped__()
    assert 'pip install' in caught.value.advice


def test_recordings_without_words_are_left_out():
    nothing = Score(0, 0, 0, 0, None, None, None, None)
    assert score([]) == score([(None, 'x'), ('', 'thank you'), ('[noise]', ''), ('um', 'um')]) == nothing
    assert score([('stop', 'stop'), ('', 'thank you')]) == score([('stop', 'stop')])
    assert paired_difference([('', 'a')], [('', '')]) == (None, None, None) and paired_difference([('a', 'a')], [('a', '')]) == (1.0, None, None)


def test_everything_wrong():
    assert score([('go on', ''), ('stop', '...')]).wer == 1.0
    assert score([('go', 'go go go go')]).wer == 3.0
    assert str(score([('stop', '')])) == 'Score(WER 100.0%, CER 100.0%: of 1 words 0 substituted, 0 inserted, 1 deleted)'


def test_each_pair_in_its_language():
    pairs = [('twenty colours', '20 colors'), ('Füße', 'fuße'), ('東京に行く', '東京に 行きます')]
    assert score(pairs[:1]).wer == 0 and score(pairs[:1], None).wer == 1
    together = score(pairs, ['en', 'de', 'ja'])
    assert (together.words, together.substitutions, together.insertions) == (2 + 1 + 5, 2, 2)
    assert score(pairs[2:], 'ja').wer == score(pairs[2:], 'ja').cer == 3/5  # each letter a word, and spaces do not count
    with pytest.raises(ValueError): score(pairs, ['en'])


def test_limits_hold_the_truth_nineteen_times_of_twenty():
    draw, inside, rate, trials = np.random.default_rng(1), 0, 0.1, 100
    for _ in range(trials):
        found = score([('a a a a a', ' '.join(draw.choice(['a', 'x'], 5, p=[1 - rate, rate]))) for _ in range(40)], None)
        inside += found.low <= rate <= found.high
    assert 88 <= inside <= 100


def test_limits_hold_the_truth_where_hardly_a_word_is_wrong():
    "Eight short recordings, as come along: by drawing alone the truth would be outside whenever no word is wrong, every second time."
    draw, inside, rate, trials = np.random.default_rng(2), 0, 0.02, 150
    for _ in range(trials):
        found = score([('a a a a a', ' '.join(draw.choice(['a', 'x'], 5, p=[1 - rate, rate]))) for _ in range(8)], None)
        inside += found.low <= rate <= found.high
    assert inside >= 0.9*trials


@pytest.mark.parametrize('errors, most', list(enumerate((3.00, 4.74, 6.30, 7.75, 9.15))))
def test_the_upper_limit_is_at_least_what_counting_allows(errors, most):
    from math import exp, factorial
    assert sum(exp(-most)*most**count/factorial(count) for count in range(errors + 1)) == pytest.approx(0.05, abs=0.001)  # so many errors, or fewer, once in twenty times
    found = score([('a b c d e', 'a b c d x' if place < errors else 'a b c d e') for place in range(200)])
    assert found.high >= most/1000 and found.low <= found.wer <= found.high
    assert score([('a', 'x' if place < errors else 'a') for place in range(3)]).high == 1.0


def test_a_difference_is_found_and_chance_is_not():
    draw = np.random.default_rng(0)
    def heard(rate, seed): return ' '.join(np.random.default_rng(seed).choice(['a', 'x'], 5, p=[1 - rate, rate]))
    hard = draw.uniform(0, 0.6, 100)  # the same recordings are hard for both
    one, same, worse = ([('a a a a a', heard(min(1, rate + more), [seed, place])) for place, rate in enumerate(hard)] for seed, more in ((1, 0), (2, 0), (3, 0.15)))
    difference, low, high = paired_difference(one, same, None)
    assert low < 0 < high and low <= difference <= high
    assert paired_difference(one, worse, None)[1] > 0 and paired_difference(worse, one, None)[2] < 0
    with pytest.raises(RequestError, match='not the same recordings'): paired_difference(one, one[:-1], None)


def test_invented_words():
    found = hallucination([('Thank you.', 30.0), ('', 20.0), ('[Musik] ...', 10.0), ('ご視聴', 60.0)], ['en', None, 'de', 'ja'])
    assert (found.clips, found.clips_with_words, found.words, found.words_per_minute) == (4, 2, 5, 2.5)
    assert repr(found) == 'Hallucination(2.5 words per minute: 5 in 2 of 4 recordings, 120 s)'
    assert hallucination([]).words_per_minute is None and repr(hallucination([])) == 'Hallucination(no recordings)'
