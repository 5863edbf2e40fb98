-- Tasks that come again by the clock.
--
-- Lock order: the contact's log, then the schedule. Whoever fires, makes or deletes them with their contact does so under
-- the log's row; who only pauses, resumes or deletes one takes nothing else.
set local search_path = router;

create table schedules (
  tenant_id text not null, schedule_id text not null,
  contact text not null,                        -- hears of each end
  kind text not null, input jsonb not null,     -- of each task
  cron text not null, time_zone text not null,
  principal text not null,                      -- who made it: in whose name each task is accepted
  next_time timestamptz,                        -- when the next task is accepted; null: paused
  last_run_id text,
  idem_key text, digest bytea,
  create_time timestamptz not null default clock_timestamp(),
  primary key (tenant_id, schedule_id),
  -- No schedule outlives its contact, whichever release deletes that.
  foreign key (tenant_id, contact) references contacts on delete cascade) with (fillfactor = 70);
create unique index schedules_key on schedules (tenant_id, idem_key) where idem_key is not null;
create index schedules_of_contact on schedules (tenant_id, contact, schedule_id);
create index schedules_due on schedules (next_time) where next_time is not null;

-- What stays of a schedule, for a while, so that a repeated key does not make it again.
create table deleted_schedules (
  tenant_id text not null, idem_key text not null, digest bytea not null, schedule_id text not null,
  delete_time timestamptz not null default clock_timestamp(), primary key (tenant_id, idem_key));
create index deleted_schedules_by_time on deleted_schedules (tenant_id, delete_time);

do $$ declare t text; begin
  foreach t in array array['schedules', 'deleted_schedules'] loop
    execute format('alter table router.%I enable row level security; alter table router.%I force row level security;
      create policy wall on router.%I using (tenant_id = (select nullif(current_setting(''app.tenant_id'', true), '''')))', t, t, t);
    execute format('grant select, insert, update, delete on router.%I to retinue_router', t);
  end loop;
end $$;
grant select (tenant_id, schedule_id, next_time) on schedules to retinue_sweep;

-- Runs as the tables' owner where a contact takes its schedules along, hence the full names.
create function keep_schedule_key_1() returns trigger language plpgsql as $$
begin
  delete from router.deleted_schedules d where d.tenant_id = old.tenant_id and d.delete_time < clock_timestamp() - interval '30 days';
  insert into router.deleted_schedules (tenant_id, idem_key, digest, schedule_id)
    values (old.tenant_id, old.idem_key, old.digest, old.schedule_id) on conflict do nothing;
  return null;
end $$;
create trigger keep_key after delete on schedules for each row when (old.idem_key is not null) execute function keep_schedule_key_1();

-- Makes a schedule, and its contact if that is missing: created | replay | key_reused | deleted | full (the tenant has p_max).
create function create_schedule_1(t text, p_schedule text, p_contact text, p_log text, p_kind text, p_input jsonb, p_cron text,
  p_zone text, p_by text, p_next timestamptz, p_key text, p_digest bytea, p_max int)
returns table (outcome text, schedule_id text, create_time timestamptz) language plpgsql as $$
declare k record;
begin
  perform set_config('app.tenant_id', t, true);
  perform pg_advisory_xact_lock(hashtextextended('schedules ' || t, 0));          -- one at a time of a tenant: count and key hold
  if p_key is not null then
    select x.schedule_id, x.digest into k from schedules x where x.tenant_id = t and x.idem_key = p_key;
    if found then
      outcome := case when k.digest = p_digest then 'replay' else 'key_reused' end; schedule_id := k.schedule_id; return next; return;
    end if;
    select x.schedule_id, x.digest into k from deleted_schedules x where x.tenant_id = t and x.idem_key = p_key;
    if found then
      outcome := case when k.digest = p_digest then 'deleted' else 'key_reused' end; schedule_id := k.schedule_id; return next; return;
    end if;
  end if;
  if (select count(*) from schedules x where x.tenant_id = t) >= p_max then
    outcome := 'full'; return next; return;
  end if;
  perform open_log_1(t, p_log, p_contact, 'ses_' || substr(p_schedule, 5));       -- the contact stays while this is held
  return query insert into schedules as x (tenant_id, schedule_id, contact, kind, input, cron, time_zone, principal, next_time, idem_key, digest)
    values (t, p_schedule, p_contact, p_kind, p_input, p_cron, p_zone, p_by, p_next, p_key, p_digest)
    returning 'created', x.schedule_id, x.create_time;
end $$;

-- What is needed to fire a schedule, with the database's time. No row: it is gone.
create function look_at_schedule_1(t text, p_schedule text)
returns table (contact text, kind text, input jsonb, cron text, time_zone text, principal text, next_time timestamptz, now timestamptz)
language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  return query select x.contact, x.kind, x.input, x.cron, x.time_zone, x.principal, x.next_time, clock_timestamp()
    from schedules x where x.tenant_id = t and x.schedule_id = p_schedule;
end $$;

-- Accepts the task of a tick and moves the schedule on, in one commit: accepted | moved (paused, deleted, or fired by
-- somebody else meanwhile) | full, which leaves the schedule as it is. p_expected: the tick; p_next: the one after it,
-- null if there is none.
create function fire_schedule_1(t text, p_schedule text, p_expected timestamptz, p_next timestamptz, p_notify text, p_log text,
  p_session text, p_run text, p_input jsonb, p_queue_max int, p_later_max int)
returns table (outcome text, ring bool) language plpgsql as $$
declare s schedules; a record;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_notify for no key update;
  select * into s from schedules x where x.tenant_id = t and x.schedule_id = p_schedule and x.next_time = p_expected for no key update;
  if not found then
    outcome := 'moved'; ring := false; return next; return;
  end if;
  select * into a from submit_run_2(t, s.contact, p_log, true, p_session, p_run, s.kind, null, null, p_input, 'enqueue', s.principal,
    p_notify, '', null, p_queue_max, p_later_max, null);
  if a.outcome = 'accepted' then
    update schedules x set next_time = p_next, last_run_id = p_run where x.tenant_id = t and x.schedule_id = p_schedule;
  end if;
  outcome := a.outcome; ring := a.ring; return next;
end $$;

-- Moves a tick that could not be fired; false if the schedule has moved meanwhile.
create function put_off_schedule_1(t text, p_schedule text, p_expected timestamptz, p_until timestamptz) returns bool language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  update schedules x set next_time = p_until where x.tenant_id = t and x.schedule_id = p_schedule and x.next_time = p_expected;
  return found;
end $$;

-- Mended: as in take_1, the time that a task waited begins when it might begin.
create or replace function held_by_1(t text, p_log text, p_holder text) returns held_1 language plpgsql as $$
declare h held_1; r runs; l logs;
begin
  select * into l from logs x where x.tenant_id = t and x.log_id = p_log and x.holder = p_holder;
  if not found then return null; end if;
  select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'running' and x.token = l.token;
  if not found then return null; end if;
  h.token := l.token; h.run_id := r.run_id; h.attempt := r.attempt; h.kind := r.kind; h.contact := r.contact; h.session_id := r.session_id;
  h.input := r.input; h.checkpoint := r.checkpoint; h.traceparent := r.traceparent;
  h.queued_s := extract(epoch from clock_timestamp() - greatest(r.create_time, r.run_at)); h.history := history_1(t, p_log, r.session_id, r.run_id, l.token, 200);
  h.runtime := l.runtime; h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time); h.keep_token := 0;
  select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
    from approvals a where a.tenant_id = t and a.run_id = r.run_id;
  select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data, 'run_id', e.run_id,
      'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into h.events
    from events e where e.tenant_id = t and e.log_id = p_log and e.token = l.token;
  h.prev := coalesce(h.events -> 0 ->> 'prev', l.last_token || '-' || l.last_n);
  return h;
end $$;
