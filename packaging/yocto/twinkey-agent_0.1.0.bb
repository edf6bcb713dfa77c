# A sketch for a layer of your own, written after cargo.bbclass and never built. It needs Rust 1.85 or newer: on a long-term
# release that has an older one, meta-lts-mixins brings it. `bitbake -c update_crates twinkey-agent` writes
# twinkey-agent-crates.inc from Cargo.lock.

SUMMARY = "Keeps a gateway connected to Azure IoT Hub while its keys are renewed"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = " \
    file://LICENSE-MIT;md5=5e452e12af8d4d0dfa4560bfb15da150 \
    file://LICENSE-APACHE;md5=22a53954e4e0ec258dfce4391e905dac \
"

# Where you keep the source: set both in your layer.
TWINKEY_GIT ?= "git.example.org/twinkey.git"
SRCREV ?= "${AUTOREV}"
SRC_URI = "git://${TWINKEY_GIT};protocol=https;branch=main"
S = "${WORKDIR}/git"

inherit cargo cargo-update-recipe-crates systemd useradd
require twinkey-agent-crates.inc

# The profile that packages ship, and nothing but the agent.
BUILD_MODE = "--profile dist"
BUILD_DIR = "dist"
CARGO_BUILD_FLAGS += "--package twinkey-agent"

SYSTEMD_SERVICE:${PN} = "twinkey-agent.service"
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --user-group --home-dir /var/lib/twinkey --no-create-home --shell /sbin/nologin twinkey"
RDEPENDS:${PN} = "ca-certificates"
CONFFILES:${PN} = "${sysconfdir}/twinkey/agent.toml"

do_install() {
    install -D -m 0755 ${B}/target/${CARGO_TARGET_SUBDIR}/twinkey-agent ${D}${bindir}/twinkey-agent
    install -D -m 0644 ${S}/docs/agent.example.toml ${D}${sysconfdir}/twinkey/agent.toml
    install -D -m 0644 ${S}/systemd/twinkey-agent.service ${D}${systemd_system_unitdir}/twinkey-agent.service
    install -D -m 0644 ${S}/systemd/twinkey-provision.service ${D}${systemd_system_unitdir}/twinkey-provision.service
    install -D -m 0644 ${S}/systemd/twinkey-agent.service.d/growing-delay.conf \
        ${D}${systemd_system_unitdir}/twinkey-agent.service.d/growing-delay.conf
    install -D -m 0644 ${S}/systemd/tmpfiles.d/twinkey-agent.conf ${D}${nonarch_libdir}/tmpfiles.d/twinkey-agent.conf
}

FILES:${PN} += "${systemd_system_unitdir} ${nonarch_libdir}/tmpfiles.d"
