-- What a run used is what all of its attempts used, as far as they could tell: one that failed and is repeated records its
-- own, and the end of the run names the sum. An attempt that was lost with its process has told nothing.
set local search_path = router;

-- What a run used together with its last attempt's usage; the model is the last one's. Most runs have one attempt, and are
-- not looked for.
create function used_1(t text, r runs, p_usage jsonb) returns jsonb language plpgsql stable as $$
declare former record;
begin
  if r.attempt <= 1 then return p_usage; end if;
  select count(*) as attempts, sum(u.input_tokens) as input, sum(u.output_tokens) as output, max(u.model) as model into former
    from usage_logs u where u.tenant_id = t and u.run_id = r.run_id and u.attempt < r.attempt;
  if former.attempts = 0 then return p_usage; end if;
  return jsonb_build_object('model', former.model) || coalesce(p_usage, '{}') || jsonb_build_object(
    'input_tokens', former.input + coalesce((p_usage ->> 'input_tokens')::int, 0),
    'output_tokens', former.output + coalesce((p_usage ->> 'output_tokens')::int, 0));
end $$;

-- Mended: the run's usage is the sum.
create or replace function end_run_1(t text, r runs, p_state text, p_output text, p_usage jsonb, p_error jsonb, p_agent text) returns text language plpgsql as $$
begin
  update runs x set state = p_state, output = p_output, usage = used_1(t, r, p_usage), error = p_error, end_time = clock_timestamp(), checkpoint = null,
      dropped = (coalesce(x.cancel, '') = 'rollback')
    where x.tenant_id = t and x.run_id = r.run_id;
  update approvals a set state = 'expired', decide_time = clock_timestamp() where a.tenant_id = t and a.run_id = r.run_id and a.state = 'pending';
  insert into usage_logs (tenant_id, run_id, attempt, agent_id, runtime, model, message_count, input_tokens, output_tokens)
    values (t, r.run_id, r.attempt, coalesce(p_agent, ''), coalesce(r.runtime, ''), coalesce(p_usage ->> 'model', ''),
      case when p_output is null then 1 else 2 end, coalesce((p_usage ->> 'input_tokens')::int, 0), coalesce((p_usage ->> 'output_tokens')::int, 0))
    on conflict do nothing;
  return tell_end_1(t, r, p_state, p_output);
end $$;

-- Mended: an attempt that is repeated records what it used, and the end tells the sum.
create or replace function finish_2(t text, p_log text, p_token bigint, p_run text, p_state text, p_output text, p_usage jsonb, p_error jsonb,
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
    if not p_refund then
      insert into usage_logs (tenant_id, run_id, attempt, agent_id, runtime, model, message_count, input_tokens, output_tokens)
        values (t, p_run, r.attempt, coalesce(p_agent, ''), coalesce(r.runtime, ''), coalesce(p_usage ->> 'model', ''), 1,
          coalesce((p_usage ->> 'input_tokens')::int, 0), coalesce((p_usage ->> 'output_tokens')::int, 0)) on conflict do nothing;
    end if;
    update runs x set state = 'queued', attempt = x.attempt - case when p_refund then 1 else 0 end where x.tenant_id = t and x.run_id = p_run;
    update logs x set holder = null, due_time = clock_timestamp() + p_delay where x.tenant_id = t and x.log_id = p_log;
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
