-- A bounded queue, tasks that begin later, attempts that are given back, and runs that are set aside.
--
-- A function whose callers would notice the change gets a new version; a mend that callers of either version need
-- replaces the body in place.
set local search_path = router;

alter table runs add column run_at timestamptz;                   -- when a task may begin
alter table runs add column dead text check (dead in ('open', 'retried', 'dropped'));   -- set aside: failed, and not by what was asked
alter table runs add column dead_time timestamptz;
alter table runs add column retry_of text;                        -- the dead letter that this run was accepted in place of
alter table runs add column retried_as text;                      -- and the other way round
create index runs_dead on runs (tenant_id, run_id) where dead is not null;
-- The size of the queue, and how much was set aside, over all tenants: numbers, no names.
grant select (tenant_id, log_id, position, state, dead) on runs to retinue_sweep;

-- How full a tenant's queue is, up to a bound that is worth knowing; later: runs whose time has not come.
create function queued_1(t text, p_bound int) returns table (waiting int, later int) language sql stable as $$
  select count(*) filter (where q.run_at is null or q.run_at <= clock_timestamp())::int,
    count(*) filter (where q.run_at > clock_timestamp())::int
  from (select r.run_at from runs r where r.tenant_id = t and r.state = 'queued' limit p_bound) q
$$;

-- At which pace a tenant's queue moves: runs that wait, and for how long the first of them has (seconds).
create function queue_pace_1(t text, p_bound int) returns table (waiting int, oldest_s double precision) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  return query select count(*)::int, coalesce(extract(epoch from clock_timestamp() - min(greatest(q.create_time, q.run_at))), 0)::double precision
    from (select r.create_time, r.run_at from runs r where r.tenant_id = t and r.state = 'queued'
      and (r.run_at is null or r.run_at <= clock_timestamp()) limit p_bound) q;
end $$;

-- As submit_run_1, and: full where the tenant's queue holds p_queue_max runs already (not looked at where that is null),
-- or p_later_max whose time has not come; `queued` is what was counted. p_run_at: when a task may begin.
create function submit_run_2(t text, p_contact text, p_log text, p_task bool, p_session text, p_run text, p_kind text, p_key text,
  p_digest bytea, p_input jsonb, p_busy text, p_by text, p_notify text, p_traceparent text, p_run_at timestamptz,
  p_queue_max int, p_later_max int, p_retry_of text)
returns table (outcome text, run_id text, ring bool, poke text, session_id text, after_token bigint, after_n int, create_time timestamptz,
  queued int) language plpgsql as $$
declare l logs; r runs; active runs; k record; q record;
begin
  perform set_config('app.tenant_id', t, true);                  -- the wall, in the same round trip
  ring := false;
  for i in 1..3 loop
    if p_key is not null then
      select x.run_id, x.digest into k from runs x where x.tenant_id = t and x.idem_key = p_key;
      if found then
        outcome := case when k.digest = p_digest then 'replay' else 'key_reused' end; run_id := k.run_id; return next; return;
      end if;
      select x.run_id, x.digest into k from deleted_keys x where x.tenant_id = t and x.idem_key = p_key;
      if found then
        outcome := case when k.digest = p_digest then 'deleted' else 'key_reused' end; run_id := k.run_id; return next; return;
      end if;
    end if;
    if p_queue_max is not null then
      select * into q from queued_1(t, p_queue_max + p_later_max);
      queued := q.waiting;
      if (case when p_run_at > clock_timestamp() then q.later >= p_later_max else q.waiting >= p_queue_max end) then
        outcome := 'full'; return next; return;
      end if;
    end if;
    if p_notify is not null then perform open_log_1(t, p_notify, p_contact, 'ses_' || substr(p_run, 5)); end if;
    l := open_log_1(t, p_log, case when p_task then null else p_contact end, p_session);  -- locked: order, on_busy, no lost wake-up
    -- A fresh log may follow one that was deleted, with its keys, while this call waited for the lock.
    if p_key is not null and l.next_position = 1 and exists (select from deleted_keys x where x.tenant_id = t and x.idem_key = p_key) then
      continue;
    end if;
    select * into active from runs x where x.tenant_id = t and x.log_id = p_log and x.state in ('running', 'waiting');
    if p_busy <> 'enqueue' and active.run_id is null then
      -- One that rests before its next attempt has begun, and nobody executes it.
      select * into active from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued' order by x.position limit 1;
      if p_busy <> 'reject' and active.token is null then active := null; end if;
    end if;
    if p_busy = 'reject' and active.run_id is not null then
      outcome := 'busy'; return next; return;
    end if;
    insert into runs (tenant_id, run_id, log_id, session_id, contact, kind, position, idem_key, digest, input, notify_log,
        after_token, after_n, traceparent, run_at, retry_of)
      values (t, p_run, p_log, l.session_id, p_contact, p_kind, l.next_position, p_key, p_digest, p_input, p_notify,
        l.last_token, l.last_n, p_traceparent, p_run_at, p_retry_of)
      on conflict (tenant_id, idem_key) where idem_key is not null do nothing returning * into r;
    if found then
      if p_busy in ('interrupt', 'rollback') and active.run_id is not null then
        if active.state = 'running' then
          update runs x set cancel = case x.cancel when 'rollback' then x.cancel else p_busy end, cancel_by = p_by
            where x.tenant_id = t and x.run_id = active.run_id;
        else
          perform cancel_idle_1(t, active, p_busy, p_by);
          l.due_time := null;
        end if;
      end if;
      update logs x set next_position = x.next_position + 1, due_time = coalesce(l.due_time, p_run_at, clock_timestamp())
        where x.tenant_id = t and x.log_id = p_log returning * into l;
      return query select 'accepted', p_run, l.due_time <= clock_timestamp(),
        case when active.state = 'running' and p_busy in ('interrupt', 'rollback') then l.holder end,
        r.session_id, r.after_token, r.after_n, r.create_time, queued;
      return;
    end if;
  end loop;                                                       -- lost the key's race: the next look sees the winner
  raise exception 'an idempotency key vanished between two looks' using errcode = '40001';
end $$;

-- Mended: what a dead letter was asked is left out once it was asked anew.
create or replace function history_1(t text, p_log text, p_session text, p_run text, p_before bigint, p_limit int) returns jsonb language sql stable as $$
  select coalesce(jsonb_agg(jsonb_build_object('role', case h.type when 'user.message' then 'user' else 'assistant' end, 'text', h.data ->> 'text')
      order by h.token desc, h.n desc), '[]') from (
    select e.type, e.data, e.token, e.n from events e
    where e.tenant_id = t and e.log_id = p_log and e.session_id = p_session and e.type in ('user.message', 'assistant.message')
      and e.token < p_before and e.run_id <> p_run
      -- Neither list depends on the event, so that each is made once.
      and (e.type = 'user.message' or e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped)))
      and e.run_id <> all (array(select r.run_id from runs r where r.tenant_id = t and r.log_id = p_log and r.dropped and r.retried_as is not null))
    order by e.token desc, e.n desc limit p_limit) h
$$;

-- Mended: whether a run has begun before is told by its token, since an attempt may be given back; a run that used up
-- its attempts is set aside; the time that a task waited begins when it might begin.
create or replace function take_1(t text, p_log text, p_holder text, ttl interval, p_attempts int) returns held_1 language plpgsql as $$
declare h held_1; r runs; l logs; ev jsonb := '[]'; tok bigint; i int := 0; parked_until timestamptz; ended bool := false; m record; more bool;
begin
  select * into l from logs x where x.tenant_id = t and x.log_id = p_log;
  select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state in ('running', 'waiting');   -- index one_runner
  if r.state = 'waiting' then
    select min(a.expire_time) into parked_until from approvals a
      where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending' and a.expire_time > clock_timestamp();
    if parked_until is not null then r := null; end if;           -- undecided: only mail may be taken
  elsif r.run_id is null then                                     -- else: running, and its holder is gone
    select * into r from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued' order by x.position limit 1;  -- index runs_queued
  end if;
  if r.run_id is null and not exists (select from mail x where x.tenant_id = t and x.log_id = p_log) then
    update logs x set holder = null, due_time = parked_until where x.tenant_id = t and x.log_id = p_log;
    return null;
  end if;
  tok := l.token + 1;
  h.token := tok; h.prev := l.last_token || '-' || l.last_n;
  if r.run_id is not null then
    -- A dead holder's run with a wish to stop is ended, not run again; so is one out of attempts.
    ended := r.state = 'running' and (r.cancel is not null or r.attempt >= p_attempts);
    if r.token is not null and r.state <> 'waiting' and not ended then
      i := i + 1;
      ev := ev || jsonb_build_object('n', i, 'type', 'run.resumed', 'run_id', r.run_id, 'session_id', r.session_id,
        'data', jsonb_build_object('attempt', r.attempt + 1, 'rewind_to', h.prev));
    end if;
  end if;
  for m in with d as (delete from mail x where x.tenant_id = t and x.log_id = p_log returning *) select * from d order by d.mail_id loop
    i := i + 1;
    ev := ev || jsonb_build_object('n', i, 'type', m.type, 'run_id', m.run_id, 'session_id', m.session_id, 'data', m.data);
  end loop;
  if ended then
    i := i + 1;
    -- Ended under the new token: whoever lost this run must not take the end for his own.
    update runs x set token = tok where x.tenant_id = t and x.run_id = r.run_id;
    if r.cancel is not null then
      perform end_run_1(t, r, 'cancelled', null, null, null, null);
      ev := ev || jsonb_build_object('n', i, 'type', 'run.cancelled', 'run_id', r.run_id, 'session_id', r.session_id, 'data', cancelled_data_1(r));
    else
      h.input := jsonb_build_object('code', 14, 'message', 'The run used up its attempts: each was lost with the process that made it.', 'details',
        jsonb_build_array(jsonb_build_object('@type', 'type.googleapis.com/google.rpc.ErrorInfo', 'reason', 'ATTEMPTS_EXHAUSTED',
          'domain', 'retinue', 'metadata', jsonb_build_object('attempts', r.attempt::text))));
      perform end_run_1(t, r, 'failed', null, null, h.input, null);
      update runs x set dead = 'open', dead_time = clock_timestamp() where x.tenant_id = t and x.run_id = r.run_id;
      ev := ev || jsonb_build_object('n', i, 'type', 'run.failed', 'run_id', r.run_id, 'session_id', r.session_id, 'data', jsonb_build_object('error', h.input));
      h.input := null;
    end if;
  elsif r.run_id is not null then
    if r.state = 'waiting' then
      for m in update approvals a set state = 'expired', decide_time = clock_timestamp(), decided_by = 'expiry'
          where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending' returning * loop
        i := i + 1;
        ev := ev || jsonb_build_object('n', i, 'type', 'approval.decided', 'run_id', r.run_id, 'session_id', r.session_id,
          'data', jsonb_build_object('approval_id', m.approval_id, 'decision', 'deny', 'by', 'expiry'));
      end loop;
      select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
        from approvals a where a.tenant_id = t and a.run_id = r.run_id;
    elsif r.token is null and r.kind = 'chat' then
      i := i + 1;
      ev := ev || jsonb_build_object('n', i, 'type', 'user.message', 'run_id', r.run_id, 'session_id', r.session_id,
        'data', jsonb_build_object('message_id', r.input -> 'message_id', 'text', r.input -> 'text'));
    end if;
    update runs x set state = 'running', token = tok, attempt = x.attempt + case when r.state = 'waiting' then 0 else 1 end,
        start_time = coalesce(x.start_time, clock_timestamp()),
        said_token = case when r.token is null and r.kind = 'chat' then tok else x.said_token end,
        said_n = case when r.token is null and r.kind = 'chat' then i else x.said_n end
      where x.tenant_id = t and x.run_id = r.run_id returning * into r;
    h.run_id := r.run_id; h.attempt := r.attempt; h.kind := r.kind; h.contact := r.contact; h.session_id := r.session_id; h.input := r.input;
    h.checkpoint := r.checkpoint; h.traceparent := r.traceparent;
    h.queued_s := extract(epoch from clock_timestamp() - greatest(r.create_time, r.run_at));
    h.history := history_1(t, p_log, r.session_id, r.run_id, tok, 200);
    h.runtime := l.runtime; h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time);
    select coalesce(max(x.token), 0) into h.keep_token from (
      select x.token, x.end_time from runs x where x.tenant_id = t and x.log_id = p_log and x.position < r.position
      order by x.position desc limit 200) x where x.end_time < clock_timestamp() - interval '10 minutes';
  end if;
  h.events := write_events_1(t, p_log, tok, ev);
  if h.run_id is not null then
    update logs x set token = tok, holder = p_holder, due_time = clock_timestamp() + ttl where x.tenant_id = t and x.log_id = p_log;
  else
    more := exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued') and parked_until is null;
    update logs x set token = tok, holder = null, due_time = case when more then clock_timestamp() else parked_until end
      where x.tenant_id = t and x.log_id = p_log;
    h.ring := more;
  end if;
  return h;
end $$;

-- As finish_1, and: p_refund gives the attempt back with the run (p_state queued), for one that ended through no fault of
-- its own; p_dead sets a failed run aside.
create function finish_2(t text, p_log text, p_token bigint, p_run text, p_state text, p_output text, p_usage jsonb, p_error jsonb,
  p_decision jsonb, p_agent text, ev jsonb, p_terminal_n int, p_delay interval, p_refund bool,
  p_dead bool, p_holder text, ttl interval, p_next bool, p_attempts int)
returns table (ok bool, state text, events jsonb, ring bool, told text, next held_1) language plpgsql as $$
declare r runs; h held_1; final text := p_state; d jsonb; heard text; written jsonb; more bool := false;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null for no key update;
  if not found then
    -- Asked again after a lost answer? Then the run has ended, or waits, under this very token.
    select * into r from runs x where x.tenant_id = t and x.run_id = p_run and x.token = p_token
      and x.state in ('succeeded', 'failed', 'cancelled', 'queued') and p_state <> 'running';
    if not found or not exists (select from logs x where x.tenant_id = t and x.log_id = p_log) then
      return query select false, null::text, '[]'::jsonb, false, null::text, null::held_1; return;
    end if;
    select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data,
        'run_id', e.run_id, 'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into written
      from router.events e where e.tenant_id = t and e.log_id = p_log and e.token = p_token and e.n >= coalesce((ev -> 0 ->> 'n')::int, p_terminal_n);
    return query select true, r.state, written, exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued'),
      r.notify_log, held_by_1(t, p_log, p_holder);
    return;
  end if;
  update runs x set decision = p_decision, runtime = p_decision ->> 'runtime' where x.tenant_id = t and x.run_id = p_run returning * into r;
  if r.cancel is not null and p_state in ('succeeded', 'queued') then final := 'cancelled'; end if;
  if final = 'queued' then
    update runs x set state = 'queued', attempt = x.attempt - case when p_refund then 1 else 0 end where x.tenant_id = t and x.run_id = p_run;
    update logs x set holder = null, due_time = clock_timestamp() + p_delay where x.tenant_id = t and x.log_id = p_log;
    return query select true, final, '[]'::jsonb, false, null::text, null::held_1; return;
  end if;
  if final = 'cancelled' then d := cancelled_data_1(r);
  elsif final = 'failed' then d := jsonb_build_object('error', p_error);
  else d := jsonb_build_object('usage', p_usage); end if;
  written := write_events_1(t, p_log, p_token, ev || jsonb_build_object('n', p_terminal_n, 'type', 'run.' || final, 'run_id', p_run,
    'session_id', r.session_id, 'data', d));
  heard := end_run_1(t, r, final, p_output, p_usage, case when final = 'failed' then p_error end, p_agent);
  if final = 'failed' and p_dead then
    update runs x set dead = 'open', dead_time = clock_timestamp() where x.tenant_id = t and x.run_id = p_run;
  end if;
  update logs x set runtime = p_decision ->> 'runtime', runtime_time = clock_timestamp()
    where x.tenant_id = t and x.log_id = p_log and p_decision is not null and x.session_id = r.session_id;
  if p_next then
    h := take_1(t, p_log, p_holder, ttl, p_attempts);
    return query select true, final, written, coalesce(h.ring, false), heard, h; return;
  end if;
  more := exists (select from runs x where x.tenant_id = t and x.log_id = p_log and x.state = 'queued')
    or exists (select from mail x where x.tenant_id = t and x.log_id = p_log);
  update logs x set holder = null, due_time = case when more then clock_timestamp() end where x.tenant_id = t and x.log_id = p_log;
  return query select true, final, written, more, heard, null::held_1;
end $$;
