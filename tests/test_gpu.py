"What is known of a GPU, and CUDA's libraries found and loaded, on machines without either."
import os
import shutil
import subprocess
import sys
from time import sleep
from types import SimpleNamespace

import pytest

from whisper_nb import gpu
from whisper_nb.errors import MissingPackage
from whisper_nb.gpu import GPU, Meter, cuda_libraries, gpus, load_cuda_libraries


class PaperNVML:
    "Answers as pynvml does for one GPU: what it holds are the next figures of a list, then the last one."
    def __init__(self, used, own=None, energy=(), pid=None):
        self.used, self.own, self.energy, self.pid, self.started = list(used), list(own or ()), list(energy), pid or os.getpid(), 0
    def nvmlInit(self): self.started += 1
    def nvmlShutdown(self): self.started -= 1
    def nvmlDeviceGetCount(self): return 1
    def nvmlDeviceGetHandleByIndex(self, index): return 'handle'
    def nvmlDeviceGetHandleByPciBusId(self, address): return 'handle'
    def nvmlDeviceGetName(self, handle): return 'Paper 100'
    def nvmlSystemGetDriverVersion(self): return '555.55'
    def nvmlDeviceGetMemoryInfo(self, handle): return SimpleNamespace(total=80_000_000_000, used=self.used.pop(0) if len(self.used) > 1 else self.used[0])
    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        others = [SimpleNamespace(pid=self.pid + 1, usedGpuMemory=7_000_000_000)]
        return others + [SimpleNamespace(pid=self.pid, usedGpuMemory=self.own.pop(0) if len(self.own) > 1 else self.own[0])] if self.own else others
    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.energy: raise RuntimeError('Not Supported')
        return self.energy.pop(0)


@pytest.fixture
def one_gpu(monkeypatch):
    "The driver's own list has nothing to do with a GPU of paper."
    monkeypatch.setattr(gpu, '_driver', lambda: None)


def test_a_gpu_is_described(one_gpu):
    library = PaperNVML([0])
    assert gpus(library) == (GPU('Paper 100', 80_000_000_000, '555.55', 0),) and library.started == 0
    assert repr(gpus(library)[0]) == 'Paper 100, 80 GB, driver 555.55'


def test_no_answer_is_no_gpu():
    def fail(): raise RuntimeError('Driver Not Loaded')
    assert gpus(SimpleNamespace(nvmlInit=fail)) == ()
    with Meter('cuda', SimpleNamespace(nvmlInit=fail)) as meter: pass
    assert (meter.peak_memory, meter.energy) == (None, None)


def test_the_memory_of_this_process_and_the_energy(one_gpu):
    library = PaperNVML([9], own=[1_000, 5_000, 2_000], energy=[10_000, 12_500])
    with Meter('cuda', library) as meter: sleep(0.2)
    assert (meter.peak_memory, meter.energy, library.started) == (5_000, 2.5, 0)


@pytest.mark.parametrize('own', [None, [None]], ids=['not listed', 'not said'])
def test_where_processes_are_not_told_apart_it_is_what_was_added(one_gpu, own):
    library = PaperNVML([1_000, 4_000, 3_000], own=own)
    with Meter('cuda', library) as meter: sleep(0.2)
    assert (meter.peak_memory, meter.energy) == (3_000, None)


def test_the_meter_stops_when_the_work_fails(one_gpu):
    library = PaperNVML([1_000], energy=[0, 1_000])
    with pytest.raises(ZeroDivisionError), Meter('cuda', library) as meter: 1/0
    assert meter.energy == 1.0 and library.started == 0 and not meter._watcher.is_alive()


def test_on_the_cpu_nobody_is_asked():
    with Meter('cpu', SimpleNamespace()) as meter: pass
    assert (meter.peak_memory, meter.energy) == (None, None)


# ---- CUDA's libraries

def test_a_missing_library_is_named_with_its_package(tmp_path):
    (tmp_path/'binary').write_bytes(b'\0libcuda.so.1\0libcublas.so.912\0libcudnn.so.909\0')
    wanted = cuda_libraries([tmp_path], tmp_path/'binary')
    assert [(each.name, each.path) for each in wanted] == [('libcublas.so.912', None), ('libcudnn.so.909', None)]
    with pytest.raises(MissingPackage, match='libcublas.so.912 and libcudnn.so.909') as caught: load_cuda_libraries(wanted)
    assert "pip install 'whisper_nb[cuda]'" in caught.value.advice and '--device cpu' in caught.value.advice


def test_the_ways_of_the_system_are_looked_at(tmp_path, monkeypatch):
    (tmp_path/'binary').write_bytes(b'libcublas.so.912')
    (tmp_path/'libcublas.so.912').write_bytes(b'')
    monkeypatch.setenv('LD_LIBRARY_PATH', f'/nowhere:{tmp_path}')
    assert cuda_libraries([], tmp_path/'binary')[0].path == str(tmp_path/'libcublas.so.912')


def test_nothing_is_wanted_by_a_build_for_the_cpu(tmp_path):
    (tmp_path/'binary').write_bytes(b'libgomp.so.1')
    assert cuda_libraries(binary=tmp_path/'binary') == () and load_cuda_libraries(()) == ()


BY_NAME = """
import ctypes, sys
from pathlib import Path
from whisper_nb.gpu import cuda_libraries, load_cuda_libraries
try: ctypes.CDLL('libcublas.so.912')
except OSError: print('not before')
load_cuda_libraries(cuda_libraries([sys.argv[1]], Path(sys.argv[1])/'binary'))
print(ctypes.CDLL('libcublas.so.912').answer())
"""


@pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('cc'), reason='makes a shared library for Linux')
def test_what_is_in_a_pip_package_is_then_found_by_its_name(tmp_path):
    "With its second half beside it, which the system would not find either."
    folder = tmp_path/'nvidia'/'cublas'/'lib'
    folder.mkdir(parents=True)
    (tmp_path/'half.c').write_text('int half(void) { return 21; }')
    (tmp_path/'whole.c').write_text('int half(void); int answer(void) { return 2*half(); }')
    (tmp_path/'binary').write_bytes(b'libcublas.so.912')
    for source, name, more in (('half', 'libcublasLt.so.912', []), ('whole', 'libcublas.so.912', [folder/'libcublasLt.so.912'])):
        subprocess.run(['cc', '-shared', '-fPIC', f'-Wl,-soname,{name}', '-o', folder/name, tmp_path/f'{source}.c', *more], check=True)
    done = subprocess.run([sys.executable, '-c', BY_NAME, tmp_path], capture_output=True, text=True)
    assert done.stdout.split('\n')[:2] == ['not before', '42'], done.stderr
