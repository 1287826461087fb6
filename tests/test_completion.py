"What a checkpoint lacks is put in when it can be known, and refused before the weights are fetched when it cannot."
import json
import shutil

import pytest

from checkpoints import dump, edit, make_checkpoint

from whisper_nb.completion import complete_ctranslate2, complete_transformers
from whisper_nb.convert import convert
from whisper_nb.errors import RequestError, StepError
from whisper_nb.files import read_manifest
from whisper_nb.formats import FormatError, read_json
from whisper_nb.hub import download
from whisper_nb.layout import read_tokens, vocabulary
from whisper_nb.mirror import serving
from whisper_nb.models import DEMO_DIR, Checkpoint
from whisper_nb.standin import write_standin
from whisper_nb.verify import verify


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    "A tiny Whisper with OpenAI's multilingual vocabulary, in both formats."
    folder = tmp_path_factory.mktemp('published')
    made = write_standin(Checkpoint('someone/tiny', 32, 2, 2, 2, 51865), folder)
    return made.path, convert(made.path, 'int8').path


@pytest.fixture
def old(published, tmp_path):
    "The CTranslate2 model as old ones were published: three files, the vocabulary as text, an older name in it."
    source, made = published
    target = tmp_path/'old'
    target.mkdir()
    for name in ('model.bin', 'config.json'): shutil.copyfile(made/name, target/name)
    tokens = ['<|nocaptions|>' if token == '<|nospeech|>' else token for token in vocabulary(source)]
    (target/'vocabulary.txt').write_text('\n'.join(tokens) + '\n', encoding='utf-8')
    return target


def test_an_old_model_gets_openais_tokenizer_with_its_own_names(old, tmp_path):
    got = download(old, models_dir=tmp_path/'models')
    assert any("OpenAI's vocabulary of 51865 tokens" in note for note in got.notes) and any('80 mel bins' in note for note in got.notes)
    assert '<|nocaptions|>' in read_tokens(got.path)
    assert verify(got.path).backends == ('faster-whisper',)
    manifest = read_manifest(got.path)
    assert (manifest.format, manifest.quantization) == ('ctranslate2', 'int8_float16')


def test_a_neighbour_lends_its_tokenizer(tmp_path):
    source = make_checkpoint(tmp_path/'models'/'tiny')
    made = convert(source, 'float32').path
    for name in ('tokenizer.json', 'preprocessor_config.json', 'vocabulary.json', 'manifest.json'):
        if name != 'vocabulary.json': (made/name).unlink()
    assert complete_ctranslate2(made, [source])[0] == 'tokenizer.json of tiny'
    assert complete_ctranslate2(made, []) == ()


def test_other_tokens_of_the_same_number_are_not_taken(old):
    text = (old/'vocabulary.txt').read_text(encoding='utf-8').replace('Ġthe\n', 'Ġtheme-park\n', 1)
    (old/'vocabulary.txt').write_text(text, encoding='utf-8')
    with pytest.raises(RequestError, match='none that is known'): complete_ctranslate2(old)
    assert not (old/'tokenizer.json').exists()


def add_token(directory, name):
    "A tokenizer.json with one token more, at the end."
    tokens, data = read_tokens(directory), read_json(directory/'tokenizer.json')
    data['added_tokens'].append(data['added_tokens'][-1] | dict(id=len(tokens), content=name))
    dump(directory/'tokenizer.json', data)


def test_a_neighbour_with_more_tokens_lends_nothing(published, old, tmp_path):
    "A fine-tune with an added token: its first 51865 tokens are the model's, but its tokenizer is not."
    neighbour = shutil.copytree(published[0], tmp_path/'models'/'fine-tune')
    add_token(neighbour, '<|mine|>')
    assert len(read_tokens(neighbour)) == 51866
    got = download(old, models_dir=tmp_path/'models')
    assert got.notes[0] == "tokenizer.json of OpenAI's vocabulary of 51865 tokens" and len(read_tokens(got.path)) == 51865
    assert verify(got.path).ok


def test_a_neighbour_with_more_tokens_is_none_for_an_unpublished_vocabulary(tmp_path):
    source = make_checkpoint(tmp_path/'tiny')
    made = convert(source, 'float32').path
    (made/'tokenizer.json').unlink()
    add_token(source, '<|mine|>')
    with pytest.raises(RequestError, match='none that is known'): complete_ctranslate2(made, [source])


def test_openais_vocabulary_goes_before_neighbours(published, old, tmp_path):
    shutil.copytree(published[0], tmp_path/'models'/'a-neighbour')
    assert "OpenAI's" in download(old, models_dir=tmp_path/'models').notes[0]


def test_a_neighbour_will_do_where_openais_vocabulary_is_not_installed(published, old, tmp_path, monkeypatch):
    neighbour = shutil.copytree(published[0], tmp_path/'neighbour')
    monkeypatch.setattr('whisper_nb.vocabulary.files', lambda name: None)
    assert complete_ctranslate2(old, [neighbour])[0] == 'tokenizer.json of neighbour'
    assert '<|nocaptions|>' in read_tokens(old)


@pytest.mark.parametrize('own, other', [('<|nospeech|>', '<|nocaptions|>'), ('<|nocaptions|>', '<|nospeech|>')])
def test_the_older_name_of_a_token_is_put_right_in_both_directions(tmp_path, own, other):
    "The neighbour has the one name, the model's vocabulary the other."
    source, neighbour = (make_checkpoint(tmp_path/name, no_speech=token) for name, token in (('model', own), ('neighbour', other)))
    made = convert(source, 'float32').path
    for name in ('tokenizer.json', 'manifest.json'): (made/name).unlink()
    assert complete_ctranslate2(made, [neighbour])[0] == 'tokenizer.json of neighbour'
    assert own in read_tokens(made) and other not in read_tokens(made)
    assert verify(made).ok


def test_without_any_vocabulary_and_settings(old):
    for name in ('vocabulary.txt', 'config.json'): (old/name).unlink()
    notes = complete_ctranslate2(old)
    assert len(notes) == 4 and len(read_json(old/'vocabulary.json', list)) == 51865 and len(read_json(old/'config.json')['lang_ids']) == 99


def test_a_model_bin_that_is_no_whisper_and_one_that_is_no_model(old, tmp_path):
    (old/'model.bin').write_bytes(b'PK\x03\x04' + bytes(1000))
    with pytest.raises(FormatError): download(old, models_dir=tmp_path/'models')
    assert not (tmp_path/'models'/'old').exists()
    assert not list((tmp_path/'models').rglob('*model.bin'))


def test_a_fine_tune_without_tokenizer_gets_the_one_of_its_size(published, tmp_path):
    shutil.copytree(published[0], tmp_path/'tuned')
    for name in ('tokenizer.json', 'vocab.json', 'merges.txt', 'added_tokens.json', 'generation_config.json', 'preprocessor_config.json', 'manifest.json'): (tmp_path/'tuned'/name).unlink()
    got = download(tmp_path/'tuned', models_dir=tmp_path/'models')
    assert len(got.notes) == 3 and verify(got.path).backends == ('transformers',)
    assert read_json(got.path/'generation_config.json')['lang_to_id']['<|de|>'] == read_tokens(got.path).index('<|de|>')


def test_settings_that_are_there_stay(tmp_path):
    source = make_checkpoint(tmp_path/'tiny')
    edit(source/'generation_config.json', no_timestamps_token_id=None, lang_to_id=None, task_to_id=None, max_length=99)
    heads = read_json(source/'generation_config.json')['alignment_heads']
    assert complete_transformers(source) == ('generation_config.json completed from the tokenizer',)
    found = read_json(source/'generation_config.json')
    assert (found['max_length'], found['alignment_heads'], found['suppress_tokens']) == (99, heads, [1, 2, 7]) and found['lang_to_id']


def test_what_cannot_be_known_is_refused_before_the_weights_are_fetched(tmp_path):
    source = make_checkpoint(tmp_path/'hub'/'bare')
    (source/'tokenizer.json').unlink()
    (source/'manifest.json').unlink()
    asked = []
    with serving({'someone/bare': source}) as endpoint:
        with pytest.raises(RequestError, match='there is no tokenizer') as caught: download('someone/bare', models_dir=tmp_path/'models', endpoint=endpoint)
    assert 'tokenizer.json' in caught.value.advice
    assert not list((tmp_path/'models').rglob('*.safetensors*'))


def test_a_ctranslate2_model_at_a_hub(old, tmp_path):
    with serving({'someone/faster-whisper-tiny': old}) as endpoint:
        got = download('someone/faster-whisper-tiny', models_dir=tmp_path/'models', endpoint=endpoint)
        again = download('someone/faster-whisper-tiny', models_dir=tmp_path/'models', endpoint=endpoint)
    assert got.commit and got.notes and again.reused
    assert verify(got.path).ok


def test_a_completed_source_is_used_again_until_it_changes(old, tmp_path):
    first, again = (download(old, models_dir=tmp_path/'models') for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    edit(old/'config.json', suppress_ids=[1])
    assert not download(old, models_dir=tmp_path/'models').reused


def test_without_openais_vocabularies_it_says_what_to_install(old, monkeypatch):
    monkeypatch.setattr('whisper_nb.vocabulary.files', lambda name: None)
    with pytest.raises(StepError, match='openai-whisper'): complete_ctranslate2(old)


def test_tokens_added_in_the_tokenizers_settings(tmp_path):
    source = make_checkpoint(tmp_path/'tiny', tokenizer='pieces')
    tokens, added = read_tokens(source), read_json(source/'added_tokens.json')
    (source/'added_tokens.json').unlink()
    dump(source/'tokenizer_config.json', dict(added_tokens_decoder={str(place): dict(content=token) for token, place in added.items()}))
    assert read_tokens(source) == tokens
    dump(source/'tokenizer_config.json', dict(added_tokens_decoder=[1]))
    with pytest.raises(FormatError, match='added_tokens_decoder'): read_tokens(source)


@pytest.mark.parametrize('name, words', [('ggml-base.bin', 'whisper.cpp'), ('adapter_model.safetensors', 'adapter'), ('model.onnx', 'ONNX'), ('large-v3.pt', 'openai-whisper'), ('weights.npz', 'MLX')])
def test_models_of_other_tools_are_called_by_their_name(tmp_path, name, words):
    (tmp_path/'theirs').mkdir()
    (tmp_path/'theirs'/name).write_bytes(bytes(100))
    if name.startswith('weights'): shutil.copyfile(DEMO_DIR/'config.json', tmp_path/'theirs'/'config.json')
    with pytest.raises(RequestError, match=words): download(tmp_path/'theirs', models_dir=tmp_path/'models')
    found = verify(tmp_path/'theirs')
    assert not found.ok and (words in found.failures[0].detail or name.startswith('weights'))
