-- Sessions, runs and their event log. READ COMMITTED is required: each statement inside a function sees a fresh snapshot.
-- Lock order everywhere: a log, then its runs; a task's log, then the log of the contact that hears of its end.
do $$ begin
  if not exists (select from pg_roles where rolname = 'retinue_router') then create role retinue_router login; end if;
  -- The sweeper and the tick see ids and numbers of all tenants and nothing else. FORCE ROW LEVEL SECURITY would bind a
  -- SECURITY DEFINER owner too, so this role bypasses it and has grants on those columns alone.
  if not exists (select from pg_roles where rolname = 'retinue_sweep') then create role retinue_sweep login bypassrls; end if;
end $$;
alter role retinue_router set search_path = router;
alter role retinue_sweep set search_path = router;
-- Every statement of this role is served by an index. Functions keep their plans, and one made while a table was empty
-- must not be a scan that is still in use when it is full; nor is planning anew worth its time.
alter role retinue_router set plan_cache_mode = force_generic_plan;
alter role retinue_router set enable_seqscan = off;
alter role retinue_router set enable_bitmapscan = off;
alter role retinue_router set enable_hashjoin = off;
alter role retinue_router set enable_mergejoin = off;

create table router.contacts (
  tenant_id text not null, contact text not null, contact_id text not null,
  display_name text not null default '', channel text not null default '', profile jsonb not null default '{}',
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, contact));

-- One row a log: the lease, the order and the state of what is said with one contact, or of one task. The contact's
-- sessions follow one another in it, so that cursors of a contact only grow.
create table router.logs (
  tenant_id text not null, log_id text not null,
  contact text,                                 -- null for a task's log
  session_id text not null,                     -- the conversation that new runs belong to
  next_position bigint not null default 1,      -- last position handed out
  token bigint not null default 0,              -- raised by every run taken: a token names one attempt of one run
  holder text,                                  -- who holds the lease; null: nobody
  due_time timestamptz,                         -- null: nothing to do; past: someone must look; future: leased, parked or backing off until then
  last_token bigint not null default 0, last_n int not null default 0,     -- cursor of the last durable event
  runtime text, runtime_time timestamptz,       -- the runtime used last, and when
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, log_id), unique (tenant_id, contact)) with (fillfactor = 70);
create index logs_due on router.logs (due_time) where due_time is not null;

create table router.runs (
  tenant_id text not null, run_id text not null, log_id text not null, session_id text not null, contact text not null,
  kind text not null, position bigint not null,
  state text not null default 'queued' check (state in ('queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled')),
  attempt int not null default 0 check (attempt >= 0), token bigint,
  cancel text check (cancel in ('cancel', 'interrupt', 'rollback')), cancel_by text,
  dropped bool not null default false,          -- rolled back: what it said is not part of the conversation
  idem_key text, digest bytea,
  input jsonb not null, decision jsonb, runtime text, checkpoint bytea,
  output text, usage jsonb, error jsonb,
  notify_log text,                              -- the log that hears of a task's end
  after_token bigint not null, after_n int not null,     -- the log's last durable cursor when it was accepted
  said_token bigint, said_n int,                -- cursor of its user.message
  traceparent text not null default '',
  create_time timestamptz not null default clock_timestamp(), start_time timestamptz, end_time timestamptz,
  check ((state in ('succeeded', 'failed', 'cancelled')) = (end_time is not null)),
  check ((state = 'failed') = (error is not null)),
  primary key (tenant_id, run_id), unique (tenant_id, log_id, position),
  foreign key (tenant_id, log_id) references router.logs) with (fillfactor = 70);
create unique index runs_key on router.runs (tenant_id, idem_key) where idem_key is not null;
create unique index one_runner on router.runs (tenant_id, log_id) where state in ('running', 'waiting');
create index runs_queued on router.runs (tenant_id, log_id, position) where state = 'queued';
create index runs_dropped on router.runs (tenant_id, log_id) where dropped;
create index runs_of_contact on router.runs (tenant_id, contact, run_id);
create index runs_to_notify on router.runs (tenant_id, notify_log) where notify_log is not null;

create table router.events (
  tenant_id text not null, log_id text not null, token bigint not null, n int not null,
  prev_token bigint not null, prev_n int not null,      -- cursor of the durable event before it
  session_id text not null, run_id text not null default '', type text not null, data jsonb not null,
  time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, log_id, token, n));
create index events_of_run on router.events (tenant_id, run_id, token, n) where run_id <> '';
create index events_messages on router.events (tenant_id, log_id, session_id, token, n) where type in ('user.message', 'assistant.message');

-- Facts for a log by anyone who does not hold its lease; the next holder numbers them.
create table router.mail (
  tenant_id text not null, log_id text not null, mail_id bigint generated always as identity,
  session_id text not null, run_id text not null default '', type text not null, data jsonb not null,
  primary key (tenant_id, log_id, mail_id));

create table router.approvals (
  tenant_id text not null, approval_id text not null, log_id text not null, run_id text not null, contact text not null,
  call_id text not null, tool text not null, summary text not null,
  state text not null default 'pending' check (state in ('pending', 'allow_once', 'allow_always', 'deny', 'expired')),
  expire_time timestamptz not null, decide_time timestamptz, decided_by text,
  primary key (tenant_id, approval_id));
create index approvals_of_run on router.approvals (tenant_id, run_id);

-- What each run used; holds no name and no text, so that it outlives a deleted contact.
create table router.usage_logs (
  tenant_id text not null, run_id text not null, attempt int not null, agent_id text not null, runtime text not null,
  model text not null, message_count int not null, input_tokens int not null, output_tokens int not null,
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, run_id, attempt));
create index usage_by_time on router.usage_logs (tenant_id, create_time);

-- What stays of a deleted contact, so that neither a repeated key runs again nor a cursor is given out twice.
create table router.deleted_logs (tenant_id text not null, log_id text not null, token bigint not null, primary key (tenant_id, log_id));
create table router.deleted_keys (
  tenant_id text not null, idem_key text not null, digest bytea not null, run_id text not null,
  delete_time timestamptz not null default clock_timestamp(), primary key (tenant_id, idem_key));

do $$ declare t text; begin
  foreach t in array array['contacts', 'logs', 'runs', 'events', 'mail', 'approvals', 'usage_logs', 'deleted_logs', 'deleted_keys'] loop
    execute format('alter table router.%I enable row level security; alter table router.%I force row level security;
      create policy wall on router.%I using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', t, t, t);
    execute format('grant select, insert, update, delete on router.%I to retinue_router', t);
  end loop;
end $$;
grant usage on schema router to retinue_router, retinue_sweep;
grant select (tenant_id, log_id, due_time, last_token, last_n) on router.logs to retinue_sweep;
