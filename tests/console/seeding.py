"""A computer as the manager meets it: enrols, reports and sends events over the agents' own protocol."""

import hashlib
import http.client
import ssl
import time
import urllib.parse

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keibi.contract import enrolment
from keibi.contract.codec import CONTENT_TYPE, decode, encode
from keibi.contract.commands import CommandResult, CommandState
from keibi.contract.enrolment import ComputerFacts
from keibi.contract.events import Actor, Event, EventBatch, EventReceipt
from keibi.contract.heartbeat import HeartbeatRequest, HeartbeatResponse
from keibi.contract.names import ModuleId, Severity, new_id
from keibi.contract.status import AgentStatus, Capability, Health, ModuleStatus, SpoolStatus

DIFFERENCE = """\
--- /etc/ssh/sshd_config
+++ /etc/ssh/sshd_config
@@ -12,7 +12,8 @@
 #LoginGraceTime 2m
-PermitRootLogin no
+PermitRootLogin yes
+PasswordAuthentication yes
 #StrictModes yes
 #MaxAuthTries 6
 #MaxSessions 10
"""


class SeedComputer:
    """One computer with its key, speaking to a manager at `url`."""

    def __init__(self, url, token, hostname, **facts):
        self.host = urllib.parse.urlsplit(url).netloc
        self.key = Ed25519PrivateKey.generate()
        self.hostname = hostname
        self.facts = ComputerFacts(
            hostname=hostname,
            machine_id=hashlib.md5(hostname.encode(), usedforsecurity=False).hexdigest(),
            os_name=facts.get("os_name", "debian"),
            os_version=facts.get("os_version", "12"),
            os_pretty_name=facts.get("os_pretty_name", "Debian GNU/Linux 12 (bookworm)"),
            kernel="6.1.0-40-amd64",
            architecture="x86_64",
            cpu_count=4,
            memory_bytes=8 * 1024**3,
            addresses=facts.get("addresses", ["192.0.2.10", "2001:db8::10"]),
        )
        public = self.key.public_key().public_bytes_raw()
        answer = self.post(
            "/agent/v1/enrol",
            enrolment.EnrolRequest(
                token=token,
                public_key=public,
                agent_version="0.1.0",
                facts=self.facts,
                signature=self.key.sign(enrolment.enrol_message(public, token)),
            ),
            enrolment.EnrolResponse,
        )
        self.computer_id = answer.computer_id
        nonce = self.post("/agent/v1/challenge", enrolment.ChallengeRequest(self.computer_id), enrolment.ChallengeResponse).nonce
        self.access_token = self.post(
            "/agent/v1/token",
            enrolment.TokenRequest(self.computer_id, nonce, self.key.sign(enrolment.challenge_message(self.computer_id, nonce))),
            enrolment.TokenResponse,
        ).access_token
        self.generation = 0
        self.policy = None
        self.commands = []

    def put(self, path, body):
        """Send bytes as they are, as an upload."""
        return self.exchange("PUT", path, body)

    def post(self, path, value, type_):
        return decode(self.exchange("POST", path, encode(value)), type_)

    def exchange(self, method, path, content):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(self.host, timeout=30, context=context)
        headers = {"Content-Type": CONTENT_TYPE}
        if hasattr(self, "access_token"):
            headers["Authorization"] = f"Bearer {self.access_token}"
        connection.request(method, path, content, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, (path, answer.status, body[:500])
        return body

    def status(self, health=Health.ACTIVE, not_enforced=(), drifts=0, message="", others=(), capabilities=()):
        now = time.time()
        return AgentStatus(
            agent_version="0.1.0",
            started_at=now - 86_000,
            boot_id="b",
            policy_generation=self.generation,
            clock_at=now,
            capabilities=[
                Capability("fanotify_filesystem_marks", True),
                Capability("fanotify_names", True),
                Capability("bpf_exec_map", not not_enforced, "" if not not_enforced else "EPERM: the kernel is locked down"),
                *capabilities,
            ],
            modules=[
                ModuleStatus(
                    module=ModuleId.INTEGRITY_MONITORING,
                    health=health,
                    message=message,
                    policy_generation=self.generation,
                    rule_count=42,
                    not_enforced=list(not_enforced),
                    metrics={
                        "entities_count": 148_211.0,
                        "last_scan_at": now - 3600,
                        "last_scan_seconds": 11.4,
                        "drifts_waiting_count": float(drifts),
                    },
                ),
                *others,
            ],
            spool=SpoolStatus(),
            memory_bytes=41 * 1024 * 1024,
            cpu_seconds=93.4,
        )

    def beat(self, *, results=(), **status):
        """Report twice: the first answer brings the policy, the second says that it is in force."""
        for _ in range(2):
            value = self.status(**status)
            answer = self.post(
                "/agent/v1/heartbeat",
                HeartbeatRequest(
                    policy_generation=self.generation,
                    status_digest=new_id(),
                    facts_digest=self.hostname,
                    settings_versions={str(module.module): 1 for module in value.modules},
                    status=value,
                    facts=self.facts,
                    results=list(results),
                    clock_at=time.time(),
                ),
                HeartbeatResponse,
            )
            results = ()
            if answer.policy is not None:
                self.generation, self.policy = answer.policy.generation, answer.policy
            self.commands += answer.commands
        return answer

    def answer(self, command, message="", **result):
        return CommandResult(
            command_id=command.command_id, state=CommandState.DONE, message=message, result=result, at=time.time()
        )

    def send(self, *events):
        return self.post("/agent/v1/events", EventBatch(batch_id=new_id(), events=list(events)), EventReceipt)


def integrity_event(subject, kind="file.updated", severity=Severity.HIGH, *, ago=0.0, rule_id="", actor=True, **details):
    """Return an event as the integrity worker makes it."""
    at = time.time() - ago
    entity, change = kind.split(".")
    return Event(
        event_id=f"{int(at * 1000):012x}" + new_id()[12:],
        module=ModuleId.INTEGRITY_MONITORING,
        kind=kind,
        severity=severity,
        detected_at=at,
        changed_at=at - 0.08,
        rule_id=rule_id,
        rule_version=1,
        subject=subject,
        entity_type=entity,
        reason="It is watched by this rule.",
        message=f"The {entity} {subject} was {change}.",
        actor=Actor(
            process="/usr/bin/vim.basic", pid=4242, parent="/bin/bash", user="root", uid=0, login_user="tanaka", source="bpf"
        )
        if actor
        else Actor(),
        policy_generation=3,
        details={"change": change, "source": {"kind": "real-time"}, "baseline_version": 7, **details},
    )


def changed_sshd_config(**fields):
    """Return the event that everybody knows: root may sign in again."""
    return integrity_event(
        "/etc/ssh/sshd_config",
        severity=Severity.CRITICAL,
        difference=DIFFERENCE,
        masked_count=1,
        before={"size": 3223, "contents": "sha256:9f2c41d0", "permissions": "0600", "modified_at": 1_795_000_000.0},
        after={"size": 3250, "contents": "sha256:71ab07ee", "permissions": "0644", "modified_at": 1_795_600_000.0},
        changed_attributes=["size", "contents", "permissions", "modified_at"],
        can_restore=True,
        **fields,
    )
