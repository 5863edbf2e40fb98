-- A run knows which runtime it was under, however its attempts went: a switch between two of them is one, too.
set local search_path = router;

-- The runtime that the session is under as a run's next attempt finds it: the one under which the run has recorded a step,
-- or under which an attempt of it has begun where the session had none; else the session's.
create function runtime_before_1(r runs, p_session text) returns text language sql immutable as $$
  select case when r.checkpoint is not null or (p_session is null and r.attempt > 1) then coalesce(r.runtime, p_session) else p_session end
$$;

-- A decision as it is kept: an attempt that ended before there was one leaves the former, and one that goes on under a
-- runtime that a former switched to keeps what is known of that switch.
create function decision_kept_1(p_old jsonb, p_new jsonb) returns jsonb language sql immutable as $$
  select case when p_new is null then p_old
    when p_old ? 'bundle' and not p_new ? 'bundle' and p_old ->> 'runtime' = p_new ->> 'runtime'
      then p_new || jsonb_build_object('switches_runtime', true, 'bundle', p_old -> 'bundle', 'losses', p_old -> 'losses')
    else p_new end
$$;

-- Mended: the runtime is that of the run's own steps, where it has any.
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
    if r.rest_until > clock_timestamp() then parked_until := r.rest_until; r := null; end if;     -- as above
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
    h.runtime := runtime_before_1(r, l.runtime); h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time);
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

-- Mended: as in take_1.
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
  h.runtime := runtime_before_1(r, l.runtime); h.runtime_age_s := extract(epoch from clock_timestamp() - l.runtime_time); h.keep_token := 0;
  select jsonb_agg(jsonb_build_object('approval_id', a.approval_id, 'call_id', a.call_id, 'decision', a.state) order by a.approval_id) into h.approvals
    from approvals a where a.tenant_id = t and a.run_id = r.run_id;
  select coalesce(jsonb_agg(jsonb_build_object('n', e.n, 'prev', e.prev_token || '-' || e.prev_n, 'type', e.type, 'data', e.data, 'run_id', e.run_id,
      'session_id', e.session_id, 'time', e.time) order by e.n), '[]') into h.events
    from events e where e.tenant_id = t and e.log_id = p_log and e.token = l.token;
  h.prev := coalesce(h.events -> 0 ->> 'prev', l.last_token || '-' || l.last_n);
  return h;
end $$;

-- Mended: keeps what is known of a switch.
create or replace function checkpoint_1(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, ttl interval)
returns table (ok bool, events jsonb) language plpgsql as $$
begin
  perform set_config('app.tenant_id', t, true);
  update logs x set due_time = clock_timestamp() + ttl where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null;
  if not found then return query select false, '[]'::jsonb; return; end if;
  update runs x set checkpoint = p_checkpoint,
      decision = decision_kept_1(x.decision, p_decision), runtime = coalesce(p_decision ->> 'runtime', x.runtime)
    where x.tenant_id = t and x.run_id = p_run;
  return query select true, write_events_1(t, p_log, p_token, ev);
end $$;

-- Mended: likewise.
create or replace function park_2(t text, p_log text, p_token bigint, p_run text, ev jsonb, p_checkpoint bytea, p_decision jsonb, p_approval text,
  p_n int, p_call text, p_tool text, p_summary text, p_expire interval, p_pattern text)
returns table (ok bool, events jsonb, ring bool) language plpgsql as $$
declare r runs; until timestamptz := clock_timestamp() + p_expire; mailed bool; said jsonb;
begin
  perform set_config('app.tenant_id', t, true);
  perform from logs x where x.tenant_id = t and x.log_id = p_log and x.token = p_token and x.holder is not null for no key update;
  if not found then return query select false, '[]'::jsonb, false; return; end if;
  update runs x set state = 'waiting', checkpoint = p_checkpoint,
      decision = decision_kept_1(x.decision, p_decision), runtime = coalesce(p_decision ->> 'runtime', x.runtime)
    where x.tenant_id = t and x.run_id = p_run returning * into r;
  insert into approvals (tenant_id, approval_id, log_id, run_id, contact, call_id, tool, summary, expire_time, pattern)
    values (t, p_approval, p_log, p_run, r.contact, p_call, p_tool, p_summary, until, p_pattern);
  said := jsonb_build_object('approval_id', p_approval, 'call_id', p_call, 'tool', p_tool, 'summary', p_summary, 'expire_time', until);
  if p_pattern <> '' then said := said || jsonb_build_object('pattern', p_pattern); end if;
  ev := ev || jsonb_build_object('n', p_n, 'type', 'approval.requested', 'run_id', p_run, 'session_id', r.session_id, 'data', said);
  -- A wish to stop that came while it ran is honoured now: nobody would look at it for as long as the approval waits.
  if r.cancel is not null then perform cancel_idle_1(t, r, r.cancel, coalesce(r.cancel_by, '')); end if;
  mailed := exists (select from mail x where x.tenant_id = t and x.log_id = p_log);
  update logs x set holder = null, due_time = case when mailed then clock_timestamp() else until end,
    runtime = case when x.session_id = r.session_id then p_decision ->> 'runtime' else x.runtime end,
    runtime_time = case when x.session_id = r.session_id then clock_timestamp() else x.runtime_time end
    where x.tenant_id = t and x.log_id = p_log;
  return query select true, write_events_1(t, p_log, p_token, ev), mailed;
end $$;

-- Mended: an attempt that ends before it was decided on takes no runtime from the run: a tool call may be open under it.
create or replace function finish_2(t text, p_log text, p_token bigint, p_run text, p_state text, p_output text, p_usage jsonb, p_error jsonb,
  p_decision jsonb, p_agent text, ev jsonb, p_terminal_n int, p_delay interval, p_refund bool,
  p_dead bool, p_holder text, ttl interval, p_next bool, p_attempts int)
returns table (ok bool, state text, events jsonb, ring bool, told text, next held_1) language plpgsql as $$
declare r runs; h held_1; final text := p_state; d jsonb; heard text; written jsonb; more bool := false; rest timestamptz;
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
  -- What an attempt that is put back began under counts only where it is the run's first, and was not given back.
  update runs x set decision = decision_kept_1(x.decision, p_decision), runtime = case
        when p_state <> 'queued' then coalesce(p_decision ->> 'runtime', x.runtime)
        when p_refund then x.runtime else coalesce(x.runtime, p_decision ->> 'runtime') end
    where x.tenant_id = t and x.run_id = p_run returning * into r;
  if r.cancel is not null and p_state in ('succeeded', 'queued') then final := 'cancelled'; end if;
  if final = 'queued' then
    if not p_refund then
      insert into usage_logs (tenant_id, run_id, attempt, agent_id, runtime, model, message_count, input_tokens, output_tokens)
        values (t, p_run, r.attempt, coalesce(p_agent, ''), coalesce(p_decision ->> 'runtime', ''), coalesce(p_usage ->> 'model', ''), 1,
          coalesce((p_usage ->> 'input_tokens')::int, 0), coalesce((p_usage ->> 'output_tokens')::int, 0)) on conflict do nothing;
    end if;
    rest := case when p_delay > interval '0' then clock_timestamp() + p_delay end;
    update runs x set state = 'queued', attempt = x.attempt - case when p_refund then 1 else 0 end, rest_until = rest
      where x.tenant_id = t and x.run_id = p_run;
    update logs x set holder = null, due_time = coalesce(rest, clock_timestamp()) where x.tenant_id = t and x.log_id = p_log;
    return query select true, final, '[]'::jsonb, false, null::text, null::held_1; return;
  end if;
  if final = 'cancelled' then d := cancelled_data_1(r);
  elsif final = 'failed' then d := jsonb_build_object('error', p_error);
  else d := jsonb_build_object('usage', used_1(t, r, p_usage)); end if;
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
