import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executord.usage import names, texts
from executord.usage.counters import CountersV1, CountersV2, NetworkCounters, Reading
from executord.usage.hierarchy import remove_group
from executord.usage.watched import open_probe
from tests.fakes.cgroups import NET_DEV, Host

MIB = 1 << 20
CPU_STAT_V2 = b"""usage_usec 12500000
user_usec 10000000
system_usec 2500000
nr_periods 100
nr_throttled 40
throttled_usec 3000000
"""
MEMORY_STAT_V2 = b"anon 52428800\nfile 20971520\ninactive_file 16777216\nactive_file 4194304\n"
MEMORY_STAT_V1 = b"cache 1\ntotal_cache 20971520\ntotal_inactive_file 16777216\n"


def test_numbers_and_limits() -> None:
    assert texts.number(b"42\n") == 42
    assert texts.number(b"max\n") is None
    assert texts.number(None) is None
    assert texts.limit(b"33554432\n") == 32 * MIB
    assert texts.limit(b"9223372036854771712\n") is None
    assert texts.limit(b"max\n") is None


def test_network_counts_every_interface_but_the_loopback() -> None:
    assert texts.net_dev(NET_DEV) == (21_500, 703)
    assert texts.net_dev(b"") == (0, 0)
    assert texts.net_dev(None) is None


def test_block_counters_are_summed_over_devices() -> None:
    v1 = b"8:0 Read 100\n8:0 Write 5\n8:0 Total 105\n259:1 Read 11\n259:1 Write 7\nTotal 123\n"
    assert texts.blkio(v1) == (111, 12)
    v2 = b"8:0 rbytes=100 wbytes=5 rios=1 wios=1 dbytes=9 dios=0\n259:1 rbytes=11 wbytes=7\n"
    assert texts.io_stat(v2) == (111, 12)


def test_the_processes_own_counters() -> None:
    io = b"rchar: 9\nwchar: 9\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n"
    assert texts.process_io(io) == (4096, 8192)


def test_groups_of_a_process_by_controller() -> None:
    text = b"5:cpu,cpuacct:/a:b/c\n4:memory:/m\n1:name=systemd:/s\n0::/unified\nnonsense\n"
    assert texts.process_groups(text) == {
        "cpu": "/a:b/c",
        "cpuacct": "/a:b/c",
        "memory": "/m",
        "name=systemd": "/s",
        "": "/unified",
    }


def test_mounts_of_hierarchies_are_found_among_all_others() -> None:
    text = (
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"31 22 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        b"32 22 0:27 /docker/abc /sys/fs/cgroup/with\\040space rw - cgroup cgroup rw,memory\n"
        b"33 22 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        b"broken line\n"
    )
    found = {mount.mount_point: mount for mount in texts.group_mounts(text)}
    assert set(found) == {
        "/sys/fs/cgroup/cpu,cpuacct",
        "/sys/fs/cgroup/with space",
        "/sys/fs/cgroup/unified",
    }
    assert "cpuacct" in found["/sys/fs/cgroup/cpu,cpuacct"].controllers
    assert found["/sys/fs/cgroup/with space"].root == "/docker/abc"
    assert found["/sys/fs/cgroup/unified"].version == 2


@given(st.binary(max_size=200))
def test_no_text_makes_a_parser_raise(text: bytes) -> None:
    for parse in (
        texts.number,
        texts.pairs,
        texts.io_stat,
        texts.blkio,
        texts.process_io,
        texts.net_dev,
        texts.process_groups,
        texts.group_mounts,
    ):
        parse(text)


# -- names -----------------------------------------------------------------------------------------


def test_a_group_is_named_after_the_run_for_either_driver() -> None:
    assert names.parent_group("cgroupfs", "n1", "r-2041") == "/executord-n1/r-2041"
    assert names.parent_group("systemd", "n-1", "r-2041") == ("executord-n\\x2d1-r\\x2d2041.slice")
    assert names.group_path("systemd", "executord-n-r.slice") == (
        "executord.slice/executord-n.slice/executord-n-r.slice"
    )
    assert names.group_path("cgroupfs", "/executord-n1/r-2041") == "executord-n1/r-2041"


@given(st.text(max_size=300), st.text(max_size=300), st.sampled_from(["cgroupfs", "systemd"]))
def test_no_run_id_leads_out_of_the_groups_or_grows_too_long(
    run_id: str, instance: str, driver: str
) -> None:
    parent = names.parent_group(driver, instance, run_id)
    path = names.group_path(driver, parent)
    assert all(part not in ("", ".", "..") for part in path.split("/"))
    assert len(path.split("/")) == (3 if driver == "systemd" else 2)
    assert all(len(os.fsencode(part)) <= 255 for part in path.split("/"))
    assert "\0" not in path


@given(st.text(max_size=100), st.text(max_size=100), st.sampled_from(["cgroupfs", "systemd"]))
def test_two_runs_never_share_a_group(one: str, other: str, driver: str) -> None:
    same = names.parent_group(driver, "n", one) == names.parent_group(driver, "n", other)
    assert same is (one == other)


# -- a recorded tree of version 2 ------------------------------------------------------------------


@pytest.fixture
def v2(tmp_path: Path) -> Host:
    host = Host(tmp_path, version=2)
    host.group(
        "executord-n/r-1",
        cpu__stat=CPU_STAT_V2.replace(b"throttled_usec 3000000", b"throttled_usec 0"),
        memory__current=b"73400320\n",
        memory__stat=MEMORY_STAT_V2,
        memory__peak=b"94371840\n",
        memory__events=b"low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\n",
        io__stat=b"8:0 rbytes=4096 wbytes=8192 rios=1 wios=2\n",
        pids__current=b"3\n",
    )
    host.group("executord-n/r-1/c1", cpu__stat=CPU_STAT_V2, memory__max=b"268435456\n")
    host.process(77, "executord-n/r-1/c1")
    return host


def test_version_2_totals_come_from_the_runs_group_and_the_limit_from_the_containers(
    v2: Host,
) -> None:
    hierarchy = v2.hierarchy()
    counters = CountersV2(
        own=hierarchy.named("executord-n/r-1"), container=hierarchy.of_process(77)
    )
    assert counters.read() == Reading(
        cpu_seconds=12.5,
        cpu_user_seconds=10.0,
        cpu_system_seconds=2.5,
        cpu_throttled_seconds=3.0,
        memory_bytes=73_400_320 - 16_777_216,
        memory_cache_bytes=20_971_520,
        memory_limit_bytes=256 * MIB,
        memory_peak_bytes=94_371_840,
        oom_kills=1,
        read_bytes=4096,
        written_bytes=8192,
        pids=3,
    )
    counters.close()


def test_version_2_of_an_older_kernel_leaves_out_what_it_does_not_tell(tmp_path: Path) -> None:
    host = Host(tmp_path, version=2)
    host.group("executord-n/r-1", cpu__stat=b"usage_usec 1000000\n")
    probe = open_probe(host.hierarchy(), "executord-n/r-1", 0)
    assert probe is not None
    look = probe.look()
    assert look is not None
    assert look.reading == Reading(cpu_seconds=1.0)
    assert look.network is None
    probe.close()
    assert probe.look() is None


def test_version_1_reads_each_controllers_own_hierarchy(tmp_path: Path) -> None:
    host = Host(tmp_path, version=1)
    host.group(
        "executord-n/r-1",
        cpuacct__usage=b"2500000000\n",
        cpuacct__stat=b"user %d\nsystem %d\n"
        % (2 * os.sysconf("SC_CLK_TCK"), os.sysconf("SC_CLK_TCK") // 2),
        memory__usage_in_bytes=b"73400320\n",
        memory__max_usage_in_bytes=b"94371840\n",
        memory__stat=MEMORY_STAT_V1,
        memory__oom_control=b"oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        memory__limit_in_bytes=b"9223372036854771712\n",
        pids__current=b"2\n",
        blkio__throttle__io_service_bytes_recursive=b"8:0 Read 4096\n8:0 Write 0\nTotal 4096\n",
    )
    host.group(
        "executord-n/r-1/c1",
        cpu__stat=b"nr_periods 9\nnr_throttled 4\nthrottled_time 1500000000\n",
        memory__oom_control=b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        memory__limit_in_bytes=b"268435456\n",
    )
    host.write(host.groups / "pids/executord-n/r-1/c1/cgroup.procs", b"77\n78\n")
    host.process(77, "executord-n/r-1/c1", io=b"read_bytes: 0\nwrite_bytes: 1000\n")
    host.process(78, "executord-n/r-1/c1", io=b"read_bytes: 10\nwrite_bytes: 500\n")
    hierarchy = host.hierarchy()
    counters = CountersV1(
        own=hierarchy.named("executord-n/r-1"),
        container=hierarchy.of_process(77),
        proc=host.proc,
        pid=77,
    )
    assert counters.read() == Reading(
        cpu_seconds=2.5,
        cpu_user_seconds=2.0,
        cpu_system_seconds=0.5,
        cpu_throttled_seconds=1.5,
        memory_bytes=73_400_320 - 16_777_216,
        memory_cache_bytes=20_971_520,
        memory_limit_bytes=256 * MIB,
        memory_peak_bytes=94_371_840,
        oom_kills=2,
        read_bytes=4096,
        written_bytes=1500,
        pids=2,
    )
    counters.close()


def test_a_process_outside_the_runs_group_is_not_looked_at(v2: Host) -> None:
    v2.group("elsewhere/c9", memory__max=b"1000\n")
    v2.process(99, "elsewhere/c9")
    probe = open_probe(v2.hierarchy(), "executord-n/r-1", 99)
    assert probe is not None
    look = probe.look()
    assert look is not None
    assert look.reading.memory_limit_bytes is None
    assert look.network is None
    probe.close()


def test_a_container_without_a_group_of_the_runs_own_is_measured_by_its_own(v2: Host) -> None:
    v2.group("docker/c5", cpu__stat=b"usage_usec 500000\n", memory__max=b"4096\n")
    v2.process(55, "docker/c5")
    probe = open_probe(v2.hierarchy(), "executord-n/r-5", 55)
    assert probe is not None
    look = probe.look()
    assert look is not None
    assert look.reading.cpu_seconds == 0.5
    assert look.reading.memory_limit_bytes == 4096
    probe.close()


def test_there_is_nothing_to_look_at_without_group_and_process(v2: Host) -> None:
    assert open_probe(v2.hierarchy(), "executord-n/r-9", 4_000_000) is None


def test_a_group_below_the_part_that_is_mounted_here_is_found(tmp_path: Path) -> None:
    host = Host(tmp_path, version=2)
    mount = f"1 1 0:1 /outer {host.groups} rw - cgroup2 cgroup2 rw"
    host.write(host.proc / "self" / "mountinfo", mount.encode())
    host.process(5, "outer/inner")
    host.process(6, "other/inner")
    host.process(7, "../escape")
    hierarchy = host.hierarchy()
    assert hierarchy.of_process(5) == {"": host.groups / "inner"}
    assert hierarchy.of_process(6) == {}
    assert hierarchy.of_process(7) == {}


def test_the_network_of_the_host_is_told_by_its_file(tmp_path: Path) -> None:
    host = Host(tmp_path, version=2)
    host.process(5, "own")
    (host.proc / "6" / "net").mkdir(parents=True)
    (host.proc / "6" / "net" / "dev").hardlink_to(host.proc / "1" / "net" / "dev")
    assert NetworkCounters(host.proc, 5).read() == (21_500, 703)
    assert NetworkCounters(host.proc, 6).read() is None
    assert NetworkCounters(host.proc, 7).read() is None


def test_a_group_is_removed_with_the_empty_ones_in_it_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run" / "container").mkdir(parents=True)
    (tmp_path / "busy" / "container").mkdir(parents=True)
    (tmp_path / "busy" / "container" / "process").write_bytes(b"")
    assert remove_group(tmp_path / "run")
    assert not remove_group(tmp_path / "busy")
    assert remove_group(tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir()] == ["busy"]
