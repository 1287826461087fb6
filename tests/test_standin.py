"""Stand-ins: the right architecture and tokenizer, and through every backend the one sentence they are made to say."""
import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from whisper_nb.audio import SAMPLING_RATE, clips, default_clip, load_audio
from whisper_nb.convert import convert
from whisper_nb.errors import RequestError, StepError
from whisper_nb.files import MANIFEST_NAME, list_files
from whisper_nb.models import CHECKPOINTS
from whisper_nb.standin import MOST_TOKENS, SENTENCE, is_standin, write_standin
from whisper_nb.vocabulary import read_ranks
from whisper_nb.verify import verify

TEXT = SENTENCE.strip()
TURBO, ENGLISH, TINY = (CHECKPOINTS[f'openai/whisper-{name}'] for name in ('large-v3-turbo', 'tiny.en', 'tiny'))
SMALL = dict(width=64, encoder_layers=2, decoder_layers=2, attention_heads=2)


def small(row, **changed): return replace(row, **SMALL | dict(repo_id=f"stand-in/{row.repo_id.split('/')[1]}") | changed)


@pytest.fixture(scope='module', params=[TURBO, ENGLISH], ids=lambda row: row.repo_id.split('/')[1])
def models(request, tmp_path_factory):
    "A small stand-in in each format and type."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        source = write_standin(small(request.param), tmp_path_factory.mktemp('standin')).path
        return dict(transformers=source, **{kind: convert(source, kind).path for kind in ('float32', 'float16', 'int8')})


@pytest.mark.parametrize('kind', ['float32', 'float16', 'int8'])
def test_faster_whisper_hears_the_sentence_and_nothing_else(models, kind):
    from faster_whisper import WhisperModel
    model = WhisperModel(str(models[kind]), device='cpu')
    for clip, language, previous, plain in product(clips()[:2], ['en', None], [True, False], [{}, dict(without_timestamps=True, beam_size=1)]):
        segments, _ = model.transcribe(load_audio(clip.path), language=language, condition_on_previous_text=previous, no_speech_threshold=None, **plain)
        assert [segment.text for segment in segments] == [SENTENCE], (clip, language, previous, plain)


@pytest.mark.parametrize('backend', ['transformers', 'float32', 'int8'])
@pytest.mark.parametrize('language', ['en', None])
def test_our_backends_hear_it_too(models, backend, language):
    from whisper_nb.backends import load
    found = load(models[backend]).transcribe(default_clip().path, language=language)
    assert found.text == TEXT and len(found.segments) == 1


@pytest.fixture(scope='module', params=[TURBO, ENGLISH], ids=lambda row: row.repo_id.split('/')[1])
def talkers(request, tmp_path_factory):
    "A small stand-in that says sixty tokens in each window, for each backend."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        source = write_standin(small(request.param), tmp_path_factory.mktemp('talkers'), tokens=60).path
        assert verify(source).ok and '60 tokens' in (source / 'README.md').read_text()
        return {'transformers': source, 'faster-whisper': convert(source, 'float16').path, 'openai-whisper': convert(source, 'float16', format='openai').path}


def speech(seconds):
    "Samples in which the detector of speech finds some all the time."
    spoken = np.concatenate([load_audio(clip.path) for clip in clips() if clip.text])
    return np.resize(spoken, seconds * SAMPLING_RATE)


@pytest.mark.parametrize('backend, batch_size', [('faster-whisper', 1), ('faster-whisper', 8), ('transformers', 1), ('transformers', 8), ('openai-whisper', 1)])
def test_it_says_as_many_tokens_as_asked_in_every_window(talkers, backend, batch_size):
    from whisper_nb.backends import load
    model, read = load(talkers[backend]), Tokenizer.from_file(str(talkers['transformers'] / 'tokenizer.json'))
    words = read.encode(SENTENCE).ids
    expected = [words[place % len(words)] for place in range(60)]
    for beam_size in (1, 5):
        found = model.transcribe(speech(40), language='en', beam_size=beam_size, batch_size=batch_size)
        windows = {}
        for segment in found.segments: windows.setdefault(segment.seek, []).extend(token for token in segment.tokens if token < read.token_to_id('<|endoftext|>'))
        assert list(windows.values()) == [expected] * len(windows), (beam_size, [len(each) for each in windows.values()])
        assert len(windows) == 2 or batch_size > 1 and len(windows) > 2, (beam_size, len(windows))


def test_tokens_change_only_the_three_tensors_that_lead_to_them(tmp_path):
    from safetensors.numpy import load_file
    once, words = (load_file(write_standin(small(TINY), tmp_path / str(tokens), tokens=tokens).path / 'model.safetensors') for tokens in (None, 100))
    assert {name for name in once if not (once[name] == words[name]).all()} == {'model.decoder.embed_positions.weight'}


def test_a_few_tokens_and_the_most(tmp_path):
    from whisper_nb.backends import load
    one, most = (write_standin(small(TINY), tmp_path / str(tokens), tokens=tokens).path for tokens in (1, MOST_TOKENS))
    for tokens, path in ((1, one), (MOST_TOKENS, convert(most, 'float32').path), (MOST_TOKENS, convert(most, 'float32', format='openai').path)):
        found = load(path).transcribe(default_clip().path, language='en', beam_size=1)
        assert sum(token < 50257 for segment in found.segments for token in segment.tokens) == tokens, path
    for tokens in (0, MOST_TOKENS + 1):
        with pytest.raises(RequestError, match='cannot hold'): write_standin('tiny', tmp_path, tokens=tokens)


def test_the_other_multilingual_vocabulary(tmp_path):
    from whisper_nb.backends import load
    path = write_standin(small(TINY), tmp_path).path
    assert verify(path).ok and load(path).transcribe(default_clip().path).text == TEXT


def test_it_is_what_its_manifest_and_card_say(models):
    found = verify(models['transformers'])
    assert found.ok and is_standin(models['transformers'])
    for path in models.values(): assert 'random weights, for measurements' in (path / 'README.md').read_text() and 'This is not' in (path / 'README.md').read_text()


def test_transformers_loads_every_tensor_and_the_tokenizer(models):
    from transformers import WhisperForConditionalGeneration, WhisperTokenizerFast
    model, about = WhisperForConditionalGeneration.from_pretrained(models['transformers'], output_loading_info=True)
    assert not any(about[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), about
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    text = " Grüße aus Köln, it's 5 o'clock 👋 東京"
    tokenizer = WhisperTokenizerFast.from_pretrained(models['transformers'])
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_same_request_gives_the_same_bytes_and_shards_change_no_value(tmp_path):
    from safetensors.numpy import load_file
    one, again = (write_standin(small(TINY), tmp_path / name).path for name in ('one', 'again'))
    assert {name: (one / name).read_bytes() for name in list_files(one)} == {name: (again / name).read_bytes() for name in list_files(again)}
    parts = write_standin(small(TINY), tmp_path / 'parts', shard_bytes=2_000_000)
    values = {name: value for file in parts.weights for name, value in load_file(parts.path / file).items()}
    whole = load_file(one / 'model.safetensors')
    assert len(parts.weights) > 1 and values.keys() == whole.keys() and all((values[name] == whole[name]).all() for name in whole)
    assert verify(parts.path).ok
    other = load_file(write_standin(small(TINY), tmp_path / 'other', seed=1).path / 'model.safetensors')
    assert not any((other[name] == whole[name]).all() for name in whole if 'norm' not in name)


def test_only_a_stand_in_is_replaced(tmp_path):
    made = write_standin(small(TINY), tmp_path)
    assert write_standin(small(TINY), tmp_path).path == made.path
    manifest = json.loads((made.path / MANIFEST_NAME).read_text())
    manifest['source']['name'] = 'mine'
    (made.path / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match='no stand-in'): write_standin(small(TINY), tmp_path)
    assert sorted(path.name for path in tmp_path.glob('[!.]*')) == [made.path.name]


def test_refusals_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match='not in the table'): write_standin('someone/whisper', tmp_path / 'out')
    monkeypatch.setattr('whisper_nb.files.free_bytes', lambda path: 1000)
    with pytest.raises(StepError, match='needs .* on the disk, 1 kB are free'): write_standin('tiny', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_without_the_vocabulary_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr('whisper_nb.vocabulary.files', lambda name: None)
    with pytest.raises(StepError, match='openai-whisper') as caught: read_ranks(True)
    assert 'pip install' in caught.value.advice


def test_the_command(whisper_nb):
    done = whisper_nb('standin', 'tiny', '--shard-megabytes', '30')
    assert done.returncode == 0, done.stderr
    made = Path('outputs/stand-ins/openai_whisper-tiny')
    assert 'random parameters' in done.stdout and len(list(made.glob('model-*.safetensors'))) > 1 and os.listdir('.') == ['outputs']
    assert verify(made).ok
    assert whisper_nb('standin', 'demo').returncode == 2 and whisper_nb('standin', 'tiny', '--tokens', '0').returncode == 2
