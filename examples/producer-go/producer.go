package main

import (
	"fmt"
	"sync"
	"time"
	"uuid"
)

const (
	maxRequests      = 64 // in flight at once
	maxRequestBytes  = 1_000_000
	maxRequestWrites = 500
)

// Write is made once and sent as often as it takes: its key, its time and its body stay the same.
type Write struct {
	Type, Operation, Key string
	Body                 []byte
	IdempotencyKey       string
	Timestamp            time.Time
}

// NewWrite makes a write with a UUIDv7 as its idempotency key. It begins with the time, so that the rows of new writes lie
// together in the inbox's index.
func NewWrite(messageType, operation, key string, body []byte) Write {
	return Write{messageType, operation, key, body, uuid.NewV7().String(), time.Now().UTC()}
}

// SlotHeldError is the error of a write that was not sent, since an earlier one of its slot failed.
type SlotHeldError struct {
	Slot  string
	Cause error
}

func (e *SlotHeldError) Error() string {
	return fmt.Sprintf("slot %s: not sent: an earlier write of the slot failed. Resume the slot, then retry in order.", e.Slot)
}

func (e *SlotHeldError) Unwrap() error { return e.Cause }

// Result of a write: Wait returns its message id once Pub/Sub has it.
type Result struct {
	done chan struct{}
	id   string
	err  error
}

func (r *Result) Wait() (string, error) {
	<-r.done
	return r.id, r.err
}

func (r *Result) settle(id string, err error) {
	r.id, r.err = id, err
	close(r.done)
}

type waiting struct {
	message message
	result  *Result
}

type slot struct {
	waiting []waiting
	sending bool  // a goroutine has a request of the slot in flight
	err     error // the slot is held
}

// Producer publishes the writes of a slot in the order of the calls, one request of a slot at a time: what comes meanwhile forms
// the next one. When a request fails, so does every write of its slot that waits, and each later one, until Resume.
// So no write overtakes an earlier one.
type Producer struct {
	SlotOf   func(key string) string
	topic    *Topic
	requests chan struct{}
	mu       sync.Mutex // guards all that follows
	slots    map[string]*slot
}

func NewProducer(topic *Topic, slotOf func(key string) string) *Producer {
	return &Producer{SlotOf: slotOf, topic: topic, requests: make(chan struct{}, maxRequests), slots: map[string]*slot{}}
}

// Publish doesn't block.
func (p *Producer) Publish(write Write) *Result {
	digits := p.SlotOf(write.Key)
	result := &Result{done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.slots[digits]
	if s == nil {
		s = &slot{}
		p.slots[digits] = s
	}
	if s.err != nil {
		result.settle("", &SlotHeldError{digits, s.err})
		return result
	}
	s.waiting = append(s.waiting, waiting{messageOf(write, digits), result})
	if !s.sending {
		s.sending = true
		go p.send(digits, s)
	}
	return result
}

// Resume lets a held slot publish again, once each of its writes has failed. The caller then retries them in order.
func (p *Producer) Resume(digits string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.slots[digits]
	if s != nil && s.sending {
		return fmt.Errorf("slot %s: writes are in flight. Wait until they have failed.", digits)
	}
	delete(p.slots, digits)
	return nil
}

func (p *Producer) send(digits string, s *slot) {
	for {
		batch := p.take(digits, s)
		if batch == nil {
			return
		}
		messages := make([]message, len(batch))
		for i, w := range batch {
			messages[i] = w.message
		}
		p.requests <- struct{}{}
		ids, err := p.topic.Publish(messages)
		<-p.requests
		if err != nil {
			p.hold(digits, s, batch, err)
			return
		}
		for i, w := range batch {
			w.result.settle(ids[i], nil)
		}
	}
}

func (p *Producer) take(digits string, s *slot) []waiting {
	p.mu.Lock()
	defer p.mu.Unlock()
	size, count := 0, 0
	for count < len(s.waiting) && count < maxRequestWrites && (count == 0 || size+len(s.waiting[count].message.Data) <= maxRequestBytes) {
		size += len(s.waiting[count].message.Data)
		count++
	}
	batch := s.waiting[:count:count]
	s.waiting = s.waiting[count:]
	if count == 0 {
		delete(p.slots, digits) // idle, and not held: nothing needs to be remembered
		return nil
	}
	return batch
}

func (p *Producer) hold(digits string, s *slot, batch []waiting, err error) {
	p.mu.Lock()
	behind := s.waiting
	s.waiting, s.sending, s.err = nil, false, err
	p.mu.Unlock()
	for _, w := range batch {
		w.result.settle("", err)
	}
	for _, w := range behind {
		w.result.settle("", &SlotHeldError{digits, err})
	}
}

// PublishAll returns the message ids of the writes, in their order. Failed slots are resumed and their writes sent again, in
// order, up to so many times. It returns the error that stays, or at once one that another try doesn't change.
func (p *Producer) PublishAll(writes []Write, attempts int, report func(string)) ([]string, error) {
	ids, left := make([]string, len(writes)), make([]int, len(writes))
	for i := range writes {
		left[i] = i
	}
	for attempt := 1; ; attempt++ {
		failed, err, lasting := p.try(writes, left, ids)
		if err == nil || lasting || attempt == attempts {
			return ids, err
		}
		left = failed
		held := map[string]bool{}
		for _, i := range left {
			held[p.SlotOf(writes[i].Key)] = true
		}
		report(fmt.Sprintf("%d slots are held with %d writes, and will be resumed: %v", len(held), len(left), err))
		time.Sleep(backoff(attempt))
		for digits := range held {
			if err := p.Resume(digits); err != nil {
				return ids, err
			}
		}
	}
}

// try publishes the writes at these indexes and waits for all of them; it returns the failed ones and the first error that
// began a failure.
func (p *Producer) try(writes []Write, indexes []int, ids []string) (failed []int, first error, lasting bool) {
	results := make([]*Result, len(indexes))
	for n, i := range indexes {
		results[n] = p.Publish(writes[i])
	}
	for n, i := range indexes {
		id, err := results[n].Wait()
		if err == nil {
			ids[i] = id
			continue
		}
		failed = append(failed, i)
		status, ok := err.(*StatusError)
		if first == nil || ok && !status.Transient() {
			first, lasting = err, ok && !status.Transient()
		}
	}
	return failed, first, lasting
}

func messageOf(write Write, digits string) message {
	return message{write.Body, digits, map[string]string{
		"slot":            digits,
		"partition_key":   write.Key,
		"message_type":    write.Type,
		"operation":       write.Operation,
		"timestamp":       write.Timestamp.Format(time.RFC3339Nano),
		"idempotency_key": write.IdempotencyKey,
	}}
}
