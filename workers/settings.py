"""Settings of the workers; they share the gateway's."""

from __future__ import annotations

from pydantic import Field

from smsgateway import settings as gateway_settings


class Settings(gateway_settings.Settings):
    """What a worker process needs."""

    worker_http_address: str = Field(
        "127.0.0.1:0", description="Where a worker serves /metrics, /healthz and /readyz; port 0: a free one"
    )
    worker_database_connections: int = Field(
        12, ge=4, le=1_000, description="PostgreSQL connections of one worker: sweepers, and what is rare"
    )
    worker_statement_connections: int = Field(
        20,
        ge=1,
        le=1_000,
        description="More of them for single statements: claims, marks, results of each type and mode, receipts",
    )
    worker_redis_connections: int = Field(32, ge=4, le=1_000, description="Redis connections of one worker")

    # Turns: who is read, and how much at a time.
    slots_verification: int = Field(
        64, ge=1, le=10_000, description="Verification codes between mark and answer at once, per mode and worker"
    )
    slots_notification: int = Field(
        32, ge=1, le=10_000, description="Notifications between mark and answer at once, per mode and worker"
    )
    slots_marketing: int = Field(
        32, ge=1, le=10_000, description="Marketing messages between mark and answer at once, per mode and worker"
    )
    single_quantum: int = Field(
        32, ge=1, le=1_000, description="Messages that a queue gives per turn while others of its type wait"
    )
    single_window: int = Field(
        128, ge=1, le=10_000, description="Messages of one queue in hand; enough to pay ahead of the carrier"
    )
    single_in_hand_max: int = Field(
        256, ge=1, le=100_000, description="Messages of one type in hand; beyond it only newcomers are read"
    )
    batch_quantum: int = Field(1, ge=1, le=100, description="Chunks that a queue gives per turn while others wait")
    batch_window: int = Field(8, ge=1, le=1_000, description="Chunks of one queue in hand, 1,000 messages each")
    batch_in_hand_max: int = Field(
        24, ge=1, le=10_000, description="Chunks of one type in hand; each holds some 100 kB of numbers"
    )

    # Leases.
    lease_seconds: float = Field(
        6,
        ge=0.1,
        le=600,
        description="How long a lease holds; a dead worker's queues wait so long for another, so ten seconds after a "
        "death all goes on. It is renewed three times in that time",
    )
    leases_max: int = Field(
        256, ge=1, le=10_000, description="Queues that a worker holds per type and mode; the rest is for others"
    )
    idle_release_seconds: float = Field(
        1, ge=0, le=600, description="How long an empty queue keeps its lease, so that a trickle does not lease anew"
    )
    walk_seconds: float = Field(
        3, gt=0, le=600, description="Time between two walks of the ready sets, for notices that were lost"
    )
    walk_limit: int = Field(500, ge=1, le=10_000, description="Ready queues per partition that a walk looks at")

    # Groups.
    stage_group_max: int = Field(
        500, ge=1, le=5_000, description="Single messages claimed, paid, marked or settled in one go"
    )
    stage_gather_seconds: float = Field(
        0.03,
        ge=0,
        le=1,
        description="Time between the starts of two groups of a step while many come; one that comes alone never waits",
    )
    stage_messages_max: int = Field(
        4_000, ge=1, le=100_000, description="Messages of chunks settled in one transaction; a chunk goes alone beyond"
    )
    stage_queue_max: int = Field(
        20_000, ge=100, le=1_000_000, description="Steps that wait for their group; more is never in hand"
    )
    pay_in_flight_max: int = Field(2, ge=1, le=64, description="Calls to the cost centre at once per type and mode")

    # Submitting.
    submit_start_seconds: float = Field(
        10, gt=0, le=600, description="A carrier call that would start later than this after its mark does not start"
    )
    submit_margin_seconds: float = Field(
        5, ge=0, le=600, description="Added to a call's longest time before its outcome counts as unknown"
    )
    carrier_retry_seconds: float = Field(
        1_800, ge=0, le=604_800, description="How long what the carrier refuses for now is tried again before it fails"
    )
    retry_base_seconds: float = Field(0.5, gt=0, le=600, description="First wait before another try; it doubles")
    retry_max_seconds: float = Field(30, gt=0, le=3_600, description="Longest wait between two tries")
    hold_seconds: float = Field(
        10, ge=0, le=600, description="Longer waits are spent in the queue, not in a worker's hands"
    )
    account_pause_seconds: float = Field(
        60, gt=0, le=86_400, description="How long an account rests after the carrier has stopped it"
    )
    # The circuit breaker of a worker towards an account. Failures: no connection, and outcomes that are unknown.
    circuit_failures: int = Field(
        10,
        ge=1,
        le=10_000,
        description="Calls failing one after another that lay the account to rest; each may be a message that nobody "
        "knows about for days, so better few",
    )
    circuit_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of failing calls in a window that lays the account to rest; below it more is sent than lost",
    )
    circuit_calls_min: int = Field(
        20, ge=1, le=100_000, description="Calls in a window before their share counts, so that chance does not decide"
    )
    circuit_window_seconds: float = Field(
        30, ge=0.1, le=3_600, description="How far back calls count; longer than a call may take"
    )
    circuit_rest_seconds: float = Field(
        5, gt=0, le=3_600, description="Longest first rest; it doubles until the account works again"
    )
    circuit_rest_seconds_max: float = Field(
        60, gt=0, le=86_400, description="Longest rest, so how late a carrier that is back is found out"
    )
    circuit_trial_calls: int = Field(
        3, ge=1, le=1_000, description="Calls tried after a rest; when all are good the account works again"
    )
    # Several carrier accounts, and limits that workers share.
    failover_accounts_max: int = Field(
        3,
        ge=1,
        le=100,
        description="Accounts that a message or chunk is tried with before it waits and begins anew; each try that is "
        "not accepted costs a call and a record",
    )
    failover_wait_seconds: float = Field(
        2,
        ge=0,
        le=3_600,
        description="How long a message waits for a busy account, one at its limit or with every slot taken, before "
        "the next of its accounts is taken",
    )
    limit_lease_seconds: float = Field(
        0.1,
        gt=0,
        le=10,
        description="What a worker takes at once of a rate that all share, as time at that rate: longer means fewer "
        "questions to Redis, and more that workers have taken and not yet sent",
    )
    balance_seconds: float = Field(
        300,
        ge=1,
        le=86_400,
        description="Time between two questions for the balance of each carrier account of the table; one worker asks",
    )
    outcome_hours: float = Field(
        72,
        gt=0,
        le=8_760,
        description="After this an unknown outcome counts as failed, a missing receipt as expired",
    )
    dispatch_tries_max: int = Field(
        20,
        ge=1,
        le=1_000,
        description="Tries of a message or chunk that meets an error of ours before it is parked for an operator",
    )
    dispatch_rest_seconds: float = Field(
        3_600, gt=0, le=604_800, description="Longest wait between two such tries; 20 tries take about 5 hours"
    )

    # The outbox.
    outbox_group_max: int = Field(1_000, ge=1, le=5_000, description="Statuses sent to the cost centre in one call")
    outbox_gather_seconds: float = Field(
        0.1, ge=0, le=5, description="Time between two such calls while statuses come; one that comes alone never waits"
    )
    outbox_waiting_max: int = Field(
        20_000, ge=1, le=1_000_000, description="Statuses that wait in memory; beyond it the outbox is read instead"
    )
    outbox_hold_seconds: float = Field(
        15, gt=0, le=600, description="How long a status is left to the worker that made it before others read it"
    )
    outbox_poll_seconds: float = Field(0.5, gt=0, le=600, description="Time between two looks at the outbox")
    outbox_tries_max: int = Field(
        20, ge=1, le=1_000, description="Refusals of a call before it is parked for an operator"
    )

    # Receipts.
    receipt_read_max: int = Field(500, ge=1, le=5_000, description="Receipts settled in one transaction")
    receipt_wait_seconds: float = Field(
        1, gt=0, le=60, description="How long a read waits for receipts; also how fast a stop is noticed"
    )
    receipt_takeover_seconds: float = Field(
        60, gt=0, le=3_600, description="Receipts that a worker holds longer than this are taken over"
    )
    receipt_hours: float = Field(
        72, gt=0, le=8_760, description="How long a receipt is tried before it is parked for an operator"
    )

    # Receipts that wait at the carrier (`receipt_pull`).
    receipt_pull_seconds: float = Field(
        30, gt=0, le=86_400, description="Time between two pulls of receipts; one worker at a time pulls"
    )
    receipt_pull_count: int = Field(
        100, ge=1, le=1_000, description="Receipts asked for in one pull, at most what the carrier allows"
    )
    receipt_pulls_max: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Pulls in a row while more wait, then a rest: a carrier that never ends must not fill the inbox",
    )
    reply_pull_seconds: float = Field(
        30, gt=0, le=86_400, description="Time between two pulls of replies; one worker at a time pulls"
    )
    receipt_pull_wait_hours: float = Field(
        24,
        ge=0,
        le=8_760,
        description="How much longer an unknown outcome waits, after SMSBILL_OUTCOME_HOURS, for a pull that leaves "
        "nothing at the carrier; then it is settled all the same",
    )

    # Webhooks.
    webhook_poll_seconds: float = Field(0.5, gt=0, le=600, description="Time between two looks for webhooks to tell")
    webhook_connections: int = Field(
        32, ge=1, le=1_000, description="Webhooks told at once by a worker; each gets one request at a time"
    )
    webhook_call_seconds: float = Field(
        15,
        gt=0,
        le=300,
        description="How long a receiver may take to answer; the Standard Webhooks specification suggests 15 to 30",
    )
    webhook_events_max: int = Field(
        100, ge=1, le=1_000, description="Events in one request; 100 have some 40 kB, which any receiver takes"
    )
    webhook_turn_requests: int = Field(
        50, ge=1, le=10_000, description="Requests in a row to one webhook before others may have its connection"
    )
    webhook_retry_base_seconds: float = Field(
        5, gt=0, le=3_600, description="Longest rest of a webhook after its first failure; it doubles"
    )
    webhook_retry_seconds_max: float = Field(
        3_600, gt=0, le=86_400, description="Longest rest, so how late a receiver that is back is found out"
    )
    webhook_hours: float = Field(
        72, gt=0, le=8_760, description="How long an event is tried before it is parked for an operator"
    )
    webhook_tries_max: int = Field(
        8,
        ge=1,
        le=1_000,
        description="Refusals of an event for its content (400, 413, 415, 422) before it is parked and others go on",
    )

    # Alerts to people.
    alert_seconds: float = Field(
        30, gt=0, le=3_600, description="Time between two looks for what people are to be alerted of; one worker looks"
    )
    alert_brand_pages_max: int = Field(
        400,
        ge=1,
        le=100_000,
        description="Pages of 250 brands whose balances one look judges; the next goes on after them",
    )
    alert_count_seconds: float = Field(
        5, gt=0, le=300, description="How often a worker adds to the counts of failures, where a rule watches them"
    )
    alert_days: int = Field(90, ge=1, le=3_650, description="How long alerts that are over can be listed")
    mail_poll_seconds: float = Field(2, gt=0, le=600, description="Time between two looks for letters to send")
    mail_call_seconds: float = Field(
        30, gt=0, le=600, description="How long a step of a conversation with the mail server may take"
    )
    mail_notices_max: int = Field(
        100, ge=1, le=1_000, description="Alerts in one letter: many at once to one recipient become one"
    )
    mail_letters_max: int = Field(
        50, ge=1, le=10_000, description="Letters in a row before the next look; each is a conversation of its own"
    )
    mail_retry_base_seconds: float = Field(
        30, gt=0, le=3_600, description="Longest rest of a letter after its first failure; it doubles"
    )
    mail_retry_seconds_max: float = Field(1_800, gt=0, le=86_400, description="Longest rest of a letter")
    mail_hours: float = Field(24, gt=0, le=8_760, description="How long a letter is tried before it is given up")

    # Sweepers and the cost centre's jobs.
    sweep_seconds: float = Field(5, gt=0, le=600, description="Time between two looks for what made no progress")
    stalled_seconds: float = Field(
        60, gt=0, le=86_400, description="Without progress for so long: is it still queued? Best longer than a lease"
    )
    stalled_after_loss_seconds: float = Field(
        5,
        gt=0,
        le=86_400,
        description="The same after Redis has lost its data, so that its queues are rebuilt soon",
    )
    rebuild_seconds: float = Field(
        30, gt=0, le=3_600, description="How long after such a loss the queues are looked through so closely"
    )
    sweep_page: int = Field(500, ge=1, le=10_000, description="Rows looked at in one go")
    sweep_pages_max: int = Field(200, ge=1, le=100_000, description="Pages of one pass; the next goes on after them")
    cleanup_seconds: float = Field(60, gt=0, le=86_400, description="Time between two clean-ups")
    cleanup_limit: int = Field(5_000, ge=1, le=100_000, description="Rows of a kind that a clean-up deletes at once")
    route_days: int = Field(30, ge=4, le=3_650, description="How long it is known where a call's receipts belong")
    release_wait_seconds: float = Field(
        5, ge=0, le=30, description="How long the cost centre waits for a release request before it answers none"
    )
    book_due_seconds: float = Field(
        5, gt=0, le=86_400, description="Time between two calls that book expired packages and ended freezes"
    )
    depth_seconds: float = Field(5, gt=0, le=600, description="Time between two measurements of the queues")
    figures_seconds: float = Field(
        15,
        gt=0,
        le=3_600,
        description="Time between two questions for the figures of metrics that need a query; one worker asks. With ten"
        " thousand brands they cost some 20 ms",
    )
    metrics_brands: int = Field(
        10,
        ge=0,
        le=1_000,
        description="Brands whose balances are told by metrics, those with the most records; each is a label's value,"
        " which Prometheus keeps for ever",
    )

    # Usage.
    usage_fold_seconds: float = Field(
        2, gt=0, le=600, description="Time between two looks for what usage figures do not hold yet"
    )
    usage_fold_page: int = Field(
        5_000, ge=1, le=100_000, description="Changes folded into usage figures in one transaction, of some 0.1 s"
    )
    usage_count_seconds: float = Field(
        60, gt=0, le=86_400, description="Time between two counts of a brand's recipients of a day that goes on"
    )
    usage_count_share: float = Field(
        0.05,
        gt=0,
        le=1,
        description="Share of a worker's time that counting recipients may take: ten thousand brands, or a day of "
        "millions, are counted less often",
    )
    usage_count_days: int = Field(100, ge=1, le=1_000, description="Days whose recipients are counted in one turn")
    usage_count_hold_seconds: float = Field(
        600, gt=0, le=86_400, description="How long a count may take before another worker begins it anew"
    )

    # Loops.
    loop_retry_seconds_max: float = Field(
        10, gt=0, le=600, description="Longest wait of a loop that fails before it is tried again"
    )

    def slots(self, sms_type: int) -> int:
        """Carrier calls in flight for a type, per mode."""
        return {1: self.slots_verification, 2: self.slots_notification, 3: self.slots_marketing}[sms_type]
